PS1='culvert> '
alias client='ip netns exec client'
alias web='ip netns exec web'
cat <<'END'

Two pods, each on a node with an agent of its own. Try:
  client wget -qO- http://10.99.0.3:8080/      the client asks the web pod, through the mesh
  client wget -qO- http://10.99.1.1:8080/      the same by the service's address
  tcpdump -c 8 -ni br0 tcp                     what crosses between the pods (add & before the request)
  tail /run/node-a.log /run/node-b.log         who spoke to whom, with which identity
  culvert status --socket /run/node-a.sock     what an agent knows
  bpftool cgroup tree                          what is attached
  vi /etc/mesh/web.yaml                        change the mesh
`exit` switches the machine off.

END
