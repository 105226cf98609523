#!/bin/bash
# Installs, upgrades, removes and purges the package in a Debian that is thrown away afterwards: install.sh ROOT DEB.
# ROOT is a root folder (/ for this machine's own). It is a lower layer here, and all changes are in memory.
set -euo pipefail
root=$1 deb=$2
work=$(mktemp -d /tmp/rbd-guardian-package.XXXXXX)
mount -t tmpfs none "$work"
mkdir "$work"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t proc proc "$work/root/proc"
new=$work/root
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod 755 "$new/usr/sbin/policy-rc.d"
rm -rf "$new"/etc/rbd-guardian "$new"/var/lib/rbd-guardian

fail() { echo "FAILED: $*" >&2; exit 1; }
in_root() { chroot "$new" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
is() { # WHAT WANTED GOT
	[ "$2" = "$3" ] || fail "$1: '$3', not '$2'"
	echo "  $1: $3"
}
state() { in_root stat -c '%U:%G %a' "$1"; }

version=$(dpkg-deb -f "$deb" Version)
cp "$deb" "$new/tmp/new.deb"
# The version before: the same files.
dpkg-deb -R "$deb" "$work/before"
sed -i 's/^Version: .*/Version: 0.0.9-1/' "$work/before/DEBIAN/control"
dpkg-deb -b "$work/before" "$new/tmp/before.deb" >/dev/null

echo "installed:"
in_root dpkg -i /tmp/before.deb >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -i"; }
is "its folder" "root:rbd-guardian 750" "$(state /etc/rbd-guardian)"
is "its configuration" "root:rbd-guardian 640" "$(state /etc/rbd-guardian/rbd-guardian.toml)"
is "its user" rbd-guardian "$(in_root id -un rbd-guardian)"
in_root test -e /usr/lib/systemd/system/rbd-guardian.service -o -e /lib/systemd/system/rbd-guardian.service || fail "no unit"
in_root systemd-analyze verify rbd-guardian.service 2>"$work/verify" || { cat "$work/verify" >&2; fail "systemd-analyze verify"; }
# Nobody has enabled it: a guardian without a key is of no use.
is "enabled" disabled "$(in_root systemctl is-enabled rbd-guardian 2>/dev/null || true)"
in_root rbd-guardian --version
is "configured values" '[]' "$(in_root rbd-guardian config show --json)"
in_root test -s /usr/share/bash-completion/completions/rbd-guardian || fail "no completion"
in_root bash -c '. /usr/share/bash-completion/completions/rbd-guardian; complete -p rbd-guardian' >/dev/null
for page in man1/rbd-guardian-fence.1 man5/rbd-guardian.toml.5 man8/rbd-guardian.service.8; do
	dpkg-deb -c "$deb" | grep -q "usr/share/man/$page" || fail "no manual page $page"
done

echo "upgraded, with a configuration of its own:"
echo '[policy]
fail_over = false' >"$new/etc/rbd-guardian/conf.d/site.toml"
echo '# of the site' >>"$new/etc/rbd-guardian/rbd-guardian.toml"
mkdir -p "$new/var/lib/rbd-guardian"
in_root dpkg -i /tmp/new.deb >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "the upgrade"; }
is "version" "$version" "$(in_root dpkg-query -W -f '${Version}' rbd-guardian)"
grep -q '^# of the site' "$new/etc/rbd-guardian/rbd-guardian.toml" || fail "the site's configuration is gone"
is "a snippet counts" false "$(in_root rbd-guardian config show --json | python3 -c 'import json, sys; print(str(json.load(sys.stdin)[0]["value"]).lower())')"

echo "removed:"
in_root dpkg -r rbd-guardian >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -r"; }
in_root test -e /etc/rbd-guardian/rbd-guardian.toml || fail "the configuration is gone before the purge"
if in_root test -e /usr/bin/rbd-guardian; then fail "the program is still there"; fi

echo "purged:"
in_root dpkg -P rbd-guardian >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "dpkg -P"; }
# What changed is in the upper layer; what is gone is a character device there.
left=$(find "$work/upper" -path "$work/upper/tmp" -prune -o ! -type c -name '*rbd-guardian*' -print)
is "left" "" "$left"
