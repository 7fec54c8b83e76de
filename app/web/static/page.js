// The page works without scripts for asking. With them, answers stream, and the library can change.

import { prepareAsking } from "./ask.js";
import { byId } from "./elements.js";
import { prepareLibrary } from "./library.js";
import { keyNeeded, prepareDownloads, prepareKey, refetch } from "./service.js";

document.documentElement.classList.add("scripted");
prepareKey();
prepareDownloads();
if (byId("ask-form")) {
  prepareAsking();
  prepareLibrary();
} else if (keyNeeded) {
  await refetch(location.href, "main");
}
// The cited place may have come after the browser looked for it.
if (keyNeeded && location.hash) byId(location.hash.slice(1))?.scrollIntoView();
