/**
 * Every SMBus call of i2c-bus in its three forms with a device of a real kernel: `i2c BUS ADDRESS`, the device having 256
 * registers (QEMU's smbus-eeprom) and, where the bus does plain I²C, the id 5, 0x9ab. Compiled for the guest of the proof;
 * says `ok NAME` or what is wrong, a line each.
 */
import { openSync } from "i2c-bus";
import { busCalls, FORMS, problemOf } from "../i2c-calls.ts";

const [busNumber = 0, address = 0x50] = process.argv.slice(2).map(Number);
const FREE = 0x0b;
const bus = openSync(busNumber);
const found: [name: string, problem: string | undefined][] = [];
const { i2c: hasPlain } = bus.i2cFuncsSync();

for (const [round, form] of Object.keys(FORMS).entries()) {
  for (const call of busCalls(0x21 + round))
    if (hasPlain || !call.isPlain)
      found.push([`${call.name} ${form}`, await problemOf(form, bus, address, call)]);
  const scanned = await FORMS[form]!(bus, "scan", [address]);
  found.push([`scan ${form}`, String(scanned) === String([address]) ? undefined : `found ${scanned}`]);
  const funcs = Object(await FORMS[form]!(bus, "i2cFuncs", []));
  found.push([`i2cFuncs ${form}`, funcs.smbusReadByte ? undefined : JSON.stringify(funcs)]);
  if (hasPlain) {
    const id = Object(await FORMS[form]!(bus, "deviceId", [address]));
    found.push([
      `deviceId ${form}`,
      id.manufacturer === 5 && id.product === 0x9ab ? undefined : JSON.stringify(id),
    ]);
  }
  const failure = Object(await FORMS[form]!(bus, "readByte", [FREE, 0]).catch((error) => error));
  const isAbsent = failure.code === "ENXIO" || failure.code === "EREMOTEIO";
  found.push([`not acknowledged ${form}`, isAbsent && failure.errno < 0 ? undefined : String(failure)]);
}
bus.closeSync();

for (const [name, problem] of found)
  process.stdout.write(problem === undefined ? `ok ${name}\n` : `wrong ${problem}\n`);
process.exitCode = found.some(([, problem]) => problem !== undefined) ? 1 : 0;
