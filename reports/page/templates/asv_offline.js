"use strict";
// A browser reads no JSON from the disk, only scripts: beside every X.json that the page asks for lies X.json.js,
// which hands the same data to asvData. Served over HTTP, nothing here takes part.
if (location.protocol === "file:") {
  window.asvData = (data) => {
    document.currentScript.asvData = data;
  };
  jQuery.ajaxTransport("json", (options) => {
    const script = document.createElement("script");
    return {
      send(_, done) {
        script.onload = () => done(200, "success", {json: script.asvData});
        script.onerror = () => done(404, "error");
        script.src = options.url.split("?")[0] + ".js";
        document.head.append(script);
      },
      abort() {
        script.onload = script.onerror = null;
      },
    };
  });
}
