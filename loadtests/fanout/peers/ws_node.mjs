// ws: the loop over `server.clients` that its own page shows, compression off.
//
//   node ws_node.mjs FRAMES_PER_S SECONDS BYTES FOLDER      (FOLDER has node_modules/ws)
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [rate, seconds, size] = process.argv.slice(2, 5).map(Number);
const { WebSocketServer, WebSocket } = createRequire(process.argv[5] + "/")("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
server.on("listening", () => console.log(`port ${server.address().port}`));
server.on("connection", (viewer) => viewer.on("error", () => {}));

const count = Math.round(rate * seconds);
let began, number = 0;

function send() {
  while (number < count && performance.now() >= began + (number * 1000) / rate) {
    const data = Buffer.from(`@t=${process.hrtime.bigint()} `.padEnd(size, "x"));
    for (const viewer of server.clients) {
      if (viewer.readyState === WebSocket.OPEN) viewer.send(data, { binary: false });
    }
    number += 1;
  }
  if (number < count) setTimeout(send, Math.max(0, began + (number * 1000) / rate - performance.now()));
  else console.log(`done ${count}`);
}

createInterface({ input: process.stdin })
  .on("line", () => { began = performance.now(); send(); })
  .on("close", () => process.exit(0));
