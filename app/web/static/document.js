// A document's page: its original needs the key where one is asked for.

export function prepareDocument() {}
