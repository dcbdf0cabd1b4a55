// Profiles in this browser's IndexedDB, by name. They are not encrypted: whoever uses this browser can read them.

const DATABASE = "emoinv-edge";
const STORE = "profiles";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(new Error(`The browser did not store it (${request.error?.name}).`));
  });
}

export async function openStore() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "name" });
  const database = await done(request);
  const within = (mode) => database.transaction(STORE, mode).objectStore(STORE);
  return {
    all: () => done(within("readonly").getAll()),
    add: (profile) => done(within("readwrite").add(profile)),
    remove: (name) => done(within("readwrite").delete(name)),
  };
}
