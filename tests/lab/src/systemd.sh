# First process of a system whose service manager is the real one. It has namespaces of its own, and a cgroup.
# $1: a folder of its own; $2: files that it has over those of this machine; $3: the unit that is its goal.
set -eu
layers=$1
files=$2
goal=$3
mount --make-rprivate /
mkdir -p "$layers"
# What is written to it goes with it.
mount -t tmpfs -o mode=755 tmpfs "$layers"
root=$layers/root
mkdir "$layers/upper" "$layers/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" overlay "$root"
# Nothing of this machine's services, and nothing that would set the kernel's options.
rm -rf "$root"/etc/systemd/system/* "$root"/usr/lib/systemd/system/*.wants "$root"/lib/systemd/system/*.wants
cp -a "$files/." "$root/"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/host"
cd "$root"
pivot_root . host
cd /
umount --lazy /host
# As a container's manager leaves it: what is mounted for a service is seen by that.
mount --make-rshared /
systemd-sysusers
exec env -i container=lab PATH="$PATH" /usr/lib/systemd/systemd --system "--unit=$goal" --show-status=no --log-target=journal
