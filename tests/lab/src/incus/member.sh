# Pid 1 of one life of an Incus member: makes what a host of its own has and this machine has once, or not at all. All of it, and every
# process below, goes when this one is killed. The member's disk, which is what a reboot leaves, is its home.
# $1: the lab's directory; $2: the member's name.
set -eu
dir=$1
home=$dir/incus/$2
cd /
hostname "$2"

# A path that means this member on each of them.
mount --bind "$home" "$dir/incus/here"
mount --bind "$dir" /etc/ceph

# Device nodes: those of mapped images have the names of the kernel's rbd driver, and are nobody else's business.
mount -t tmpfs -o mode=755 tmpfs "$home/dev"
mkdir "$home/dev/net" "$home/dev/pts" "$home/dev/shm"
for node in null zero full random urandom tty console kmsg fuse loop-control net/tun; do
    if [ -e "/dev/$node" ]; then cp -a "/dev/$node" "$home/dev/$node"; fi
done
number=0
while [ $number -lt 256 ]; do
    mknod "$home/dev/loop$number" b 7 $number
    number=$((number + 1))
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$home/dev/pts"
mount -t tmpfs tmpfs "$home/dev/shm"
ln -s pts/ptmx "$home/dev/ptmx"
ln -s /proc/self/fd "$home/dev/fd"
mount --rbind "$home/dev" /dev

# /sys of this network namespace and this cgroup; with a place for the images that are mapped, and with the machine's identity.
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs "$home/sys"
mkdir -p "$home/sys/devices/rbd" "$home/sys/class/dmi/id"
cp "$home/uuid" "$home/sys/class/dmi/id/product_uuid"
mount -t overlay -o "lowerdir=$home/sys/devices:/sys/devices" overlay /sys/devices
mount -t overlay -o "lowerdir=$home/sys/class:/sys/class" overlay /sys/class
mount -t tmpfs tmpfs /sys/devices/rbd

echo ready
sleep infinity &
# This also reaps whom the containers leave behind.
while :; do wait; done
