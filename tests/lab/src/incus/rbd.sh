#!/bin/sh
# Stands before the real rbd in a member's PATH: maps and unmaps images where the kernel has no rbd driver, as that driver would, and
# leaves all else to the real one. A mapping is a loop device on a file of the member's one RADOS client (see mapper.c), under the name
# /dev/rbdN and with an entry in /sys/devices/rbd, which is where incusd looks.
set -u
home=@HOME@
verb= pool=rbd spec= value=
for word; do
    if [ -n "$value" ]; then
        if [ "$value" = pool ]; then pool=$word; fi
        value=
        continue
    fi
    case $word in
    --pool | -p) value=pool ;;
    --id | --cluster | --name | --user) value=other ;;
    -*) ;;
    *) if [ -z "$verb" ]; then verb=$word; else spec=$word; fi ;;
    esac
done
case $verb in map | unmap) ;; *) exec /usr/bin/rbd "$@" ;; esac

case $spec in */*) pool=${spec%%/*} spec=${spec#*/} ;; esac
name=${spec%@*} snapshot=-
case $spec in *@*) snapshot=${spec#*@} ;; esac
# One at a time, as in the driver.
exec 9>"$home/lock"
flock 9

find_mapping() { # sets number
    for number in $(ls /sys/devices/rbd); do
        if [ "$(cat "/sys/devices/rbd/$number/pool" "/sys/devices/rbd/$number/name" \
            "/sys/devices/rbd/$number/current_snap")" = "$pool
$name
$snapshot" ]; then return 0; fi
    done
    return 1
}

case $verb in
map)
    if ! mountpoint -q "$home/images"; then
        setsid "$home/bin/mapper" "$home/images" </dev/null >>"$home/mapper.log" 2>&1 9>&- &
        mapper=$!
        until mountpoint -q "$home/images"; do
            if ! kill -0 $mapper 2>/dev/null; then echo "rbd: map failed: no cluster" >&2; exit 110; fi
            sleep 0.01
        done
    fi
    loop=$(losetup --find --show "$home/images/$pool:$spec") || exit 2
    # Detached while it is open, it goes with its last user, however that ends.
    exec 3<>"$loop" && losetup --detach "$loop"
    number=${loop#/dev/loop}
    setsid sleep infinity </dev/null >/dev/null 2>&1 9>&- &
    mkdir "/sys/devices/rbd/$number"
    cd "/sys/devices/rbd/$number"
    echo "$!" >holder
    echo "$pool" >pool
    echo "$name" >name
    echo "$snapshot" >current_snap
    rm -f "/dev/rbd$number"
    mknod "/dev/rbd$number" b 7 "$number"
    echo "/dev/rbd$number"
    ;;
unmap)
    case $spec in
    /dev/rbd*) number=${spec#/dev/rbd} ;;
    *) find_mapping || { echo "rbd: $pool/$spec: not a mapped image or snapshot" >&2; exit 22; } ;;
    esac
    # A mounted file system has claimed its device, in whatever mount namespace.
    perl -MFcntl -e 'sysopen(my $file, $ARGV[0], O_RDONLY | O_EXCL) or exit 1' "/dev/rbd$number" ||
        { echo "rbd: unmap failed: (16) Device or resource busy" >&2; exit 16; }
    kill -KILL "$(cat "/sys/devices/rbd/$number/holder")"
    tries=0
    while losetup "/dev/loop$number" >/dev/null 2>&1 && [ $tries -lt 500 ]; do
        tries=$((tries + 1))
        sleep 0.01
    done
    rm -rf "/sys/devices/rbd/$number" "/dev/rbd$number"
    ;;
esac
