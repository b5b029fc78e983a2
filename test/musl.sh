#!/usr/bin/env bash
# The three shared libraries that a Bun musl executable needs at run time (Alpine's packages musl, libstdc++ and
# libgcc), so that the tests can start the shipped executables on a machine that is not Alpine.
#
#   test/musl.sh x86_64|aarch64      prints the folder that holds lib/; makes it first if it is not there
#
# With ALPINE_MIRROR set (https://…/alpine) and answering, Alpine's own packages are taken; otherwise the libraries are
# built from Debian's packages (as root: it installs some), about a minute each. Cached in ${XDG_CACHE_HOME:-~/.cache}/fruit.
# Use:    x86_64   LD_LIBRARY_PATH=DIR/lib ./fruit …        (with Debian's package musl for the loader)
#         aarch64  QEMU_LD_PREFIX=DIR qemu-aarch64-static -E LD_LIBRARY_PATH=DIR/lib ./fruit …
set -euo pipefail
arch=${1:?x86_64 or aarch64}
case $arch in x86_64) deb=amd64 cross= ;; aarch64) deb=arm64 cross=aarch64-linux-gnu- ;; *) echo "musl.sh: unknown architecture $arch" >&2; exit 2 ;; esac
out=${XDG_CACHE_HOME:-$HOME/.cache}/fruit/musl-$arch
if [ -e "$out/lib/libstdc++.so.6" ] && [ -e "$out/lib/libgcc_s.so.1" ] && [ -e "$out/lib/ld-musl-$arch.so.1" ]; then echo "$out"; exit; fi
exec 3>&1 1>&2 # stdout carries the folder's name and nothing else
mkdir -p "$out/lib"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

from_alpine() { # MIRROR: takes the newest stable packages; false when the mirror does not answer
  local base=$1/latest-stable/main/$arch package version
  curl -fsS -m 20 "$base/APKINDEX.tar.gz" | tar xzO APKINDEX > "$work/index" || return 1
  for package in musl libstdc++ libgcc; do
    version=$(awk -F: -v p="$package" '$1=="P"{n=$2} $1=="V"&&n==p{print $2; exit}' "$work/index")
    curl -fsS -m 120 "$base/$package-$version.apk" | tar xzC "$work" --warning=no-unknown-keyword || return 1
  done
  cp -L "$work"/lib/ld-musl-*.so.1 "$work"/usr/lib/libstdc++.so.6 "$work"/usr/lib/libgcc_s.so.1 "$out/lib/"
}
if [ -n "${ALPINE_MIRROR:-}" ] && from_alpine "$ALPINE_MIRROR"; then echo "$out" >&3; exit; fi
[ "$(id -u)" = 0 ] || { echo "musl.sh: building from Debian packages needs root: sudo --preserve-env=HOME $0 $arch"; exit 1; }

[ "$deb" = arm64 ] && dpkg --add-architecture arm64
apt-get update -qq || true # a foreign index that is missing is not fatal
packages="gcc-12-source musl-tools musl:$deb musl-dev:$deb xz-utils"
[ "$deb" = arm64 ] && packages="$packages gcc-aarch64-linux-gnu g++-aarch64-linux-gnu"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null

tarball=$(ls /usr/src/gcc-12/gcc-12.*.tar.xz)
src=$work/$(basename "$tarball" | sed 's/-dfsg.tar.xz//;s/.tar.xz//')
(cd "$work" && tar xf "$tarball" --wildcards '*/libstdc++-v3' '*/libgcc' '*/include' '*/config' '*/libiberty' \
  '*/config.guess' '*/config.sub' '*/install-sh' '*/missing' '*/ltmain.sh' '*/gcc/BASE-VER' '*/gcc/DATESTAMP' '*/gcc/DEV-PHASE' \
  '*/config-ml.in' '*/depcomp' '*/mkinstalldirs' '*/move-if-change' '*/libtool.m4' '*/compile' '*/symlink-tree')
cp "$src/libgcc/gthr-posix.h" "$src/libgcc/gthr-default.h" # the standalone build expects it to exist

# Compiler wrappers that see musl's headers and start files instead of glibc's.
mkdir "$work/bin" && export PATH=$work/bin:$PATH
sed "s/x86_64/$arch/g" /usr/lib/x86_64-linux-musl/musl-gcc.specs > "$work/musl.specs"
for c in gcc g++; do printf '#!/bin/sh\nexec %s "$@" -specs %s\n' "$(command -v ${cross}$c)" "$work/musl.specs" > "$work/bin/$arch-linux-musl-$c"; chmod +x "$work/bin/$arch-linux-musl-$c"; done
for t in ar ranlib nm strip as ld; do ln -s "$(command -v ${cross}$t || command -v $t)" "$work/bin/$arch-linux-musl-$t"; done

mkdir "$work/build" && cd "$work/build"
"$src/libstdc++-v3/configure" --build=x86_64-pc-linux-gnu --host=$arch-linux-musl --target=$arch-linux-musl --disable-multilib --disable-nls \
  --disable-libstdcxx-pch --enable-libstdcxx-threads --enable-clocale=generic --disable-symvers \
  CC="$arch-linux-musl-gcc" CXX="$arch-linux-musl-g++ -nostdinc++" CFLAGS="-O2 -fPIC" CXXFLAGS="-O2 -fPIC -D_GNU_SOURCE -DGTHREAD_USE_WEAK=0" > configure.log 2>&1 \
  || { tail -5 configure.log >&2; exit 1; }
make -j"$(nproc)" > make.log 2>&1 || true # only its own final link fails; the archive is what we take
test -f src/.libs/libstdc++.a || { tail -20 make.log >&2; exit 1; }

# Debian's unwinder calls glibc's _dl_find_object and __getauxval; musl has neither.
cat > glue.c <<'C'
#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>
struct found { unsigned long long flags; void *start, *end; struct link_map *map; void *eh_frame; unsigned long long reserved[7]; };
struct search { char *pc; struct found *result; int ok; };
static int visit(struct dl_phdr_info *info, size_t size, void *arg) {
  struct search *s = arg; char *lo = (char *)-1, *hi = 0, *eh = 0; int inside = 0; (void)size;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i]; char *at = (char *)info->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_LOAD) { if (at < lo) lo = at; if (at + p->p_memsz > hi) hi = at + p->p_memsz; inside |= s->pc >= at && s->pc < at + p->p_memsz; }
    else if (p->p_type == PT_GNU_EH_FRAME) eh = at;
  }
  if (!inside || !eh) return 0;
  *s->result = (struct found){ .start = lo, .end = hi, .eh_frame = eh }; s->ok = 1; return 1;
}
__attribute__((visibility("hidden"))) int _dl_find_object(void *pc, struct found *result) { struct search s = { pc, result, 0 }; dl_iterate_phdr(visit, &s); return s.ok ? 0 : -1; }
extern unsigned long getauxval(unsigned long);
__attribute__((visibility("hidden"))) unsigned long __getauxval(unsigned long type) { return getauxval(type); }
C
$arch-linux-musl-gcc -O2 -fPIC -c glue.c -o glue.o

# Debian's libgcc_eh.a hides the unwinder's symbols; libgcc_s.so.1 has to export them.
gcc_a=$($arch-linux-musl-gcc -print-libgcc-file-name)
mkdir unwind && (cd unwind && $arch-linux-musl-ar x "$(dirname "$gcc_a")/libgcc_eh.a")
python3 - unwind/*.o <<'PY'
import struct, sys
for name in sys.argv[1:]:
    b = bytearray(open(name, "rb").read())
    table, (size, count) = struct.unpack_from("<Q", b, 0x28)[0], struct.unpack_from("<HH", b, 0x3A)
    for i in range(count):
        at = table + i * size
        if struct.unpack_from("<I", b, at + 4)[0] != 2: continue  # SHT_SYMTAB
        off, length = struct.unpack_from("<QQ", b, at + 0x18); entry = struct.unpack_from("<Q", b, at + 0x38)[0]
        for s in range(off, off + length, entry):
            if b[s + 4] >> 4 in (1, 2) and b[s + 5] & 3 == 2: b[s + 5] &= ~3  # STV_HIDDEN -> STV_DEFAULT
    open(name, "wb").write(b)
PY
mkdir -p "$out/lib"
$arch-linux-musl-gcc -shared -nodefaultlibs -Wl,-soname,libgcc_s.so.1 -o "$out/lib/libgcc_s.so.1" unwind/*.o glue.o "$gcc_a" -lc
$arch-linux-musl-g++ -shared -nodefaultlibs -Wl,-soname,libstdc++.so.6 -o "$out/lib/libstdc++.so.6" \
  -Wl,--whole-archive src/.libs/libstdc++.a -Wl,--no-whole-archive "$out/lib/libgcc_s.so.1" "$gcc_a" glue.o -lc
$arch-linux-musl-strip "$out"/lib/lib*.so.*
cp -L /lib/ld-musl-$arch.so.1 "$out/lib/"
echo "$out" >&3
