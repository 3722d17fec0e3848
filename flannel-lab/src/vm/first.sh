#!/bin/busybox sh
# The first program of a virtual machine: mounts the host's root file system, read-only below a layer in memory, and goes on there.
b=/bin/busybox
fail() {
    echo "vm: $1"
    $b poweroff -f
}
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module" || fail "the kernel does not take $module"
done </modules/order
options=trans=virtio,version=9p2000.L,msize=524288
$b mount -t 9p -o "ro,cache=loose,$options" host /host || fail "the host's root file system can't be mounted"
$b mount -t tmpfs -o mode=755 rw /rw
$b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /root || fail "no layer for writes"
$b mkdir -p /root/out
$b mount -t 9p -o "cache=none,$options" out /root/out || fail "the shared folder can't be mounted"
for folder in proc sys dev; do
    $b mount --move "/$folder" "/root/$folder"
done
exec $b switch_root /root /bin/bash /out/.vm/init
