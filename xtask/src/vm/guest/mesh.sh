# Two pods on a bridge, and two agents: the nodes share this machine's kernel, as nodes of a cluster on one laptop do.
ip link add br0 type bridge
ip link set br0 up

pod() { # name, address
    ip netns add "$1"
    ip link add "$1" type veth peer name eth0 netns "$1"
    ip link set "$1" master br0 up
    ip -n "$1" link set lo up
    ip -n "$1" address add "$2/24" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" route add default dev eth0
}
pod client 10.99.0.2
pod web 10.99.0.3

mkdir -p /etc/mesh /srv
echo 'hello from the web pod' > /srv/index.html
ip netns exec web httpd -p 8080 -h /srv

manifest_of_pod() { # name, address, node
    cat <<END
apiVersion: v1
kind: Pod
metadata:
  name: $1
  namespace: demo
  uid: $1
  labels: { app: $1 }
  annotations: { culvert.dev/netns: /run/netns/$1 }
spec:
  nodeName: $3
  serviceAccountName: $1
  containers: [{ name: $1 }]
status:
  phase: Running
  podIP: $2
  podIPs: [{ ip: $2 }]
  conditions: [{ type: Ready, status: "True" }]
END
}
cat > /etc/mesh/demo.yaml <<END
apiVersion: v1
kind: Namespace
metadata:
  name: demo
  labels: { culvert.dev/mesh: enabled }
END
manifest_of_pod client 10.99.0.2 node-a > /etc/mesh/client.yaml
{
    manifest_of_pod web 10.99.0.3 node-b
    cat <<END
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: demo }
spec:
  clusterIP: 10.99.1.1
  clusterIPs: [10.99.1.1]
  selector: { app: web }
  ports: [{ port: 8080, targetPort: 8080 }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: demo
  labels: { kubernetes.io/service-name: web }
addressType: IPv4
endpoints:
  - addresses: [10.99.0.3]
    conditions: { ready: true }
    targetRef: { kind: Pod, name: web, namespace: demo }
ports: [{ port: 8080 }]
END
} > /etc/mesh/web.yaml

culvert ca init /etc/ca --trust-domain cluster.local
port=15021
for node in node-a node-b; do
    culvert agent --node $node --manifests /etc/mesh --ca-dir /etc/ca \
        --admin 127.0.0.1:$port --socket /run/$node.sock > /run/$node.log 2>&1 &
    port=$((port + 1))
done
for port in 15021 15022; do
    tries=0
    until wget -q -O /dev/null http://127.0.0.1:$port/healthz/ready 2> /dev/null; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ]; then
            echo "an agent does not become ready:"
            tail /run/node-a.log /run/node-b.log
            exit 1
        fi
        sleep 0.1
    done
done
