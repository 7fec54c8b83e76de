// The page works without scripts for asking. With them, answers stream, and the library can change.

import { prepareAsking } from "./ask.js";
import { prepareDocument } from "./document.js";
import { byId } from "./elements.js";
import { prepareLibrary } from "./library.js";
import { prepareKey } from "./service.js";

document.documentElement.classList.add("scripted");
prepareKey();
if (byId("ask-form")) {
  prepareAsking();
  prepareLibrary();
}
if (byId("document")) prepareDocument();
