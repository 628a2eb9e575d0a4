# Makes a mount namespace a node's own: what Kubernetes and its parts write goes where they write it on any node, and yet
# is neither the machine's nor the other node's. $1 is the node's directory. The end of the last process in here ends it all.

own=$1

# Folders that may be missing on this machine are made in a layer above it.
for parent in /etc /opt /var/lib /var/log; do
    mkdir -p "$own/layer$parent" "$own/work$parent"
    mount -t overlay overlay -o "lowerdir=$parent,upperdir=$own/layer$parent,workdir=$own/work$parent" "$parent"
done
for folder in /etc/cni/net.d /opt/cni/bin /var/lib/cni /var/log/pods /var/log/containers; do
    mkdir -p "$own$folder" "$folder"
    mount --bind "$own$folder" "$folder"
done
# File systems of their own: the kubelet asks how full they are, and finds them by a device that is mounted once.
for folder in /var/lib/containerd /var/lib/kubelet; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=0755 "node-$(basename "$folder")" "$folder"
done

# The kubelet demands these values of the machine's one kernel, and sets them where they differ: here it finds them set.
mkdir -p "$own/sys"
demand() {
    echo "$2" > "$own/sys/$(basename "$1")"
    mount --bind "$own/sys/$(basename "$1")" "/proc/sys/$1"
}
demand vm/overcommit_memory 1
demand vm/panic_on_oom 0
demand kernel/panic 10
demand kernel/panic_on_oops 1
demand kernel/keys/root_maxkeys 1000000
demand kernel/keys/root_maxbytes 25000000

# Last, since the node's directory lies in it.
mkdir -p "$own/run/lock" "$own/run/netns"
mount --bind "$own/run" /run

# Volumes that are mounted in pods by "Bidirectional" propagation must reach the node, and no further.
mount --make-rshared /
exec sleep infinity
