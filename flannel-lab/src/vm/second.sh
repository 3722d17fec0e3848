# What a virtual machine needs before its command, the command, and the end. The file `settings` says what the command is.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=${TERM:-dumb}
. /out/.vm/settings
stty -F /dev/console -onlcr
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock /dev/pts /dev/shm "/lib/modules/$RELEASE"
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind "$MODULES" "/lib/modules/$RELEASE"
# What udev would do: a program that opens /dev/net/tun can't load the module that makes it.
modprobe tun
hostname vm
ip link set lo up
cd "$FOLDER"
# From here on a warning of the kernel is somebody's fault.
dmesg --console-level 5
echo "vm: Linux $(uname -r), up after $(cut -d' ' -f1 /proc/uptime) s"
if [ -n "$TERMINAL" ]; then
    setsid --ctty --wait bash /out/.vm/command <>/dev/ttyS0 >&0 2>&1
    code=$?
else
    # Through a pipe, since programs colour what they write to a console.
    bash /out/.vm/command </dev/null 2>&1 | cat
    code=${PIPESTATUS[0]}
fi
echo "vm: exit code $code after $(cut -d' ' -f1 /proc/uptime) s"
echo "$code" >/out/.vm/code
sync
exec busybox poweroff -f
