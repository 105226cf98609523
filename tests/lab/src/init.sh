# Pid 1 of a lab. It reads a pipe that the test process holds; when that ends, for whatever reason, so does the lab.
# $1: the lab's directory; $2: the unpacked release to run Ceph from, or nothing.
set -eu
dir=$1
release=$2
cd /
if [ -n "$release" ]; then
    mount --rbind /dev "$release/dev"
    mount --rbind /sys "$release/sys"
    mount -t proc proc "$release/proc"
    # The lab's directory is below /tmp: on a tmpfs its mount point leaves no trace in the release.
    mount -t tmpfs tmpfs "$release/tmp"
    mkdir -p "$release$dir"
    mount --rbind "$dir" "$release$dir"
fi
echo ready

verdict=
read -r verdict || :

kill -KILL -1 2>/dev/null || :
if [ "$verdict" = keep ]; then set -- "$dir/data" "$dir/run"; else set -- "$dir"; fi
# What the lab's Incus members had as cgroups; an rmdir is refused as long as somebody dies in it.
cgroups=$(sed -n 's/^cgroup2 \([^ ]*\) cgroup2 .*/\1/p' /proc/mounts | head -n 1)/${dir##*/}
tries=0
while [ -d "$cgroups" ] && [ $tries -lt 200 ]; do
    find "$cgroups" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
    tries=$((tries + 1))
done
tries=0
# What was just killed may still be inside a system call that makes a file.
until rm -rf --one-file-system "$@" 2>/dev/null || [ $tries -ge 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
