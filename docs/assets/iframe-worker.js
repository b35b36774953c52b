// A page that was opened from a file cannot start a worker, and the search runs in one. There, a hidden frame takes its place: it loads
// the worker's script, and messages go to and fro between the two windows.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<body></body>";
      this.inner = new Promise((ready) => {
        frame.addEventListener("load", () => {
          const inner = frame.contentWindow;
          // A worker's postMessage goes to the page that made it; a window's own would come back to itself.
          inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const element = inner.document.createElement("script");
          element.src = script;
          element.addEventListener("load", () => ready(inner));
          inner.document.body.append(element);
        });
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.inner.then((inner) => inner.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
