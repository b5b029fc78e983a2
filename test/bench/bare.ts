/** The least that mqtt.js can be: connects to the port in argv and publishes three numbers a minute. */
import { readFileSync } from "node:fs";
import { argv } from "node:process";
import mqtt from "mqtt";

const client = mqtt.connect(`mqtt://127.0.0.1:${argv.at(-1)}`);
client.on("connect", async () => {
  for (;;) {
    const [load1, load5, load15] = readFileSync("/proc/loadavg", "utf8").split(" ").map(Number);
    client.publish("bench/bare", JSON.stringify({ load1, load5, load15 }));
    await Bun.sleep(60_000);
  }
});
