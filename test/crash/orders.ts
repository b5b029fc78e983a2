/** `fruit boot try --no-reboot`, as the agent gets it. */
export const TRY = { verb: "boot.try", args: { no_reboot: true, force: false } };
