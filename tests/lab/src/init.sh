# Pid 1 of a lab. It reads a pipe that the test process holds; when that ends, for whatever reason, so does the lab.
# $1: the lab's directory; $2: the unpacked system to run programs from, or nothing; $3: what becomes of it: `beside` this machine's own,
# for single programs, or `root`, for all of them; then the folders of this machine that are seen there as well.
set -eu
dir=$1
system=$2
place=$3
shift 3
cd /
# Monitors and Incus's database write through all the time: on a disk that stands still for seconds a guardian loses its lease and a
# member its heartbeats.
memory() {
    mkdir "$dir/memory"
    mount -t tmpfs tmpfs "$dir/memory"
}
# libfaketime leaves files there.
mount -t tmpfs tmpfs /dev/shm
outside=
[ "$place" = root ] || memory
case $place in
beside)
    mount --rbind /dev "$system/dev"
    mount --rbind /sys "$system/sys"
    mount -t proc proc "$system/proc"
    # The lab's directory is below /tmp: on a tmpfs its mount point leaves no trace in the system.
    mount -t tmpfs tmpfs "$system/tmp"
    mkdir -p "$system$dir"
    mount --rbind "$dir" "$system$dir"
    ;;
root)
    # What is written to it goes with the lab.
    layers=$dir/layers
    mkdir "$layers"
    mount -t tmpfs -o mode=755 tmpfs "$layers"
    mkdir "$layers/upper" "$layers/work" "$layers/root"
    root=$layers/root
    mount -t overlay -o "lowerdir=$system,upperdir=$layers/upper,workdir=$layers/work" overlay "$root"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    for shared in "$dir" "$@"; do
        mkdir -p "$root$shared"
        mount --bind "$shared" "$root$shared"
    done
    mkdir "$root/host"
    cd "$root"
    # A root by chroot would do for Ceph; LXC changes the root by itself, and wants one that is a mount.
    pivot_root . host
    cd /
    outside=/host
    memory
    ;;
esac
echo ready

verdict=
read -r verdict || :

kill -KILL -1 2>/dev/null || :
umount --lazy "$dir/memory"
[ "$place" != beside ] || umount --lazy "$system$dir"
# By its name outside, where it is no mount point.
dir=$outside$dir
if [ "$verdict" = keep ]; then set -- "$dir/data" "$dir/memory" "$dir/run"; else set -- "$dir"; fi
[ -z "$outside" ] || umount --lazy "$dir/layers"
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
