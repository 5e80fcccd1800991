#!/bin/sh
# The first process of new namespaces: makes a root of its own over the machine's, then becomes its systemd.
# $1: an empty directory; $2 and $3: a directory and where it is shown. Nothing that is mounted here is seen outside, and all of it ends with this process.
set -eu
work=$1
source=$2
target=$3
root=$work/root
mount --make-rprivate /
mount -t tmpfs -o mode=0755 behest "$work"
mkdir "$work/upper" "$work/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" behest "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 behest "$root/dev"
for name in null zero full random urandom tty; do
	: >"$root/dev/$name"
	mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs behest "$root/dev/shm"
mount -t tmpfs -o mode=0755 behest "$root/run"
mount -t tmpfs -o mode=1777 behest "$root/tmp"
# Where it is shown, and where it is: that may be a place that was covered above.
for place in "$target" "$source"; do
	mkdir -p "$root$place"
	mount --bind "$source" "$root$place"
	mount -o remount,bind,ro "$root$place"
done
ip link set lo up 2>/dev/null || true

# What belongs to the machine and not to a service.
mkdir -p "$root/run/systemd/system"
for unit in systemd-modules-load systemd-sysctl systemd-udevd systemd-udev-trigger systemd-journal-flush systemd-remount-fs \
	systemd-random-seed systemd-update-utmp systemd-pstore ldconfig; do
	ln -s /dev/null "$root/run/systemd/system/$unit.service"
done
for unit in sys-kernel-debug sys-kernel-tracing sys-kernel-config sys-fs-fuse-connections dev-hugepages dev-mqueue; do
	ln -s /dev/null "$root/run/systemd/system/$unit.mount"
done
rm -rf "$root/var/log/journal" "$root"/etc/systemd/system/*.wants "$root/etc/resolv.conf" "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/old"
cd "$root"
pivot_root . old
exec env -i container=behest PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . \
	/bin/sh -c 'umount -l /old; mount --make-rshared /; exec /lib/systemd/systemd --system --unit=basic.target --log-target=journal'
