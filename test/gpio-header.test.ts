/** Our numbers of the character device beside the kernel's own header, asked through a C compiler. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { FLAG, IOCTL, LAYOUT } from "../hal/native/gpiochip.ts";
import { needs, scratch } from "./node.ts";

const header = needs("sizes, offsets and requests are those of linux/gpio.h", {
  name: "cc",
  install: "gcc libc6-dev",
});
test.skipIf(header.isSkipped)(header.title, async () => {
  using folder = scratch();
  const at = (struct: string, fields: Record<string, string>) =>
    Object.entries(fields)
      .map(([key, field]) => `P("%s %zu\\n", "${key}", offsetof(struct ${struct}, ${field}));`)
      .join("\n");
  const size = (struct: string) => `P("size %zu\\n", sizeof(struct ${struct}));`;
  const structs = {
    chip: ["gpiochip_info", { label: "label", lines: "lines" }],
    info: ["gpio_v2_line_info", { name: "name", consumer: "consumer", offset: "offset", flags: "flags" }],
    request: [
      "gpio_v2_line_request",
      { offsets: "offsets", consumer: "consumer", config: "config", count: "num_lines", file: "fd" },
    ],
    config: [
      "gpio_v2_line_config",
      {
        flags: "flags",
        attributes: "num_attrs",
        id: "attrs[0].attr.id",
        value: "attrs[0].attr.values",
        mask: "attrs[0].mask",
      },
    ],
    values: ["gpio_v2_line_values", { bits: "bits", mask: "mask" }],
    event: ["gpio_v2_line_event", { id: "id" }],
  } as const;
  const requests = {
    chip: "GPIO_GET_CHIPINFO_IOCTL",
    info: "GPIO_V2_GET_LINEINFO_IOCTL",
    request: "GPIO_V2_GET_LINE_IOCTL",
    config: "GPIO_V2_LINE_SET_CONFIG_IOCTL",
    get: "GPIO_V2_LINE_GET_VALUES_IOCTL",
    set: "GPIO_V2_LINE_SET_VALUES_IOCTL",
  };
  const flags = {
    used: "USED",
    input: "INPUT",
    output: "OUTPUT",
    rising: "EDGE_RISING",
    falling: "EDGE_FALLING",
    up: "BIAS_PULL_UP",
    down: "BIAS_PULL_DOWN",
    noBias: "BIAS_DISABLED",
  };
  const body = [
    ...Object.entries(structs).map(
      ([name, [struct, fields]]) => `P("# ${name}\\n"); ${size(struct)} ${at(struct, fields)}`,
    ),
    'P("# ioctl\\n");',
    ...Object.entries(requests).map(([name, request]) => `P("${name} %lu\\n", (unsigned long)${request});`),
    'P("# flag\\n");',
    ...Object.entries(flags).map(
      ([name, flag]) => `P("${name} %lu\\n", (unsigned long)GPIO_V2_LINE_FLAG_${flag});`,
    ),
  ].join("\n");
  writeFileSync(
    join(folder.path, "print.c"),
    `#include <stdio.h>\n#include <stddef.h>\n#include <linux/gpio.h>\n#define P printf\nint main(void) {\n${body}\n}\n`,
  );
  const built = Bun.spawnSync(["cc", "-o", "print", "print.c"], { cwd: folder.path });
  expect(built.stderr.toString()).toBe("");
  const said = Bun.spawnSync([join(folder.path, "print")]).stdout.toString();
  const found = Object.fromEntries(
    said
      .split("# ")
      .slice(1)
      .map((part) => {
        const [name = "", ...lines] = part.trimEnd().split("\n");
        return [
          name,
          Object.fromEntries(lines.map((line) => line.split(" ")).map(([k, n]) => [k, Number(n)])),
        ];
      }),
  );
  expect(found).toEqual({ ...LAYOUT, ioctl: IOCTL, flag: FLAG });
});
