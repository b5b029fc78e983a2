/** What ws and random-access-file get where they ask for a native helper: as if it were not installed. */
throw Object.assign(new Error("this native package is left out on purpose"), { code: "MODULE_NOT_FOUND" });
