//! The single node: container runtime, control plane, kubelet, kube-proxy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::state::State;
use super::{cgroup, net, start};
use crate::progress::step;
use crate::{Cmd, wait_for};

/// Name of the holder of the node's namespaces.
pub(crate) const HOLDER: &str = "node";

/// Clients throttle themselves to 20 requests a second unless told otherwise;
/// the controllers would take five seconds to start.
const UNTHROTTLED: [&str; 2] = ["--kube-api-qps=500", "--kube-api-burst=1000"];

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Starts what needs no API server, and the API server.
pub(crate) fn start_first(layout: &Layout, state: &mut State) -> Result<()> {
    start::holder(layout, state, HOLDER, &["node"])?;
    let daemon = |state: &mut State, name: &str, command: &Cmd| {
        start::beside(layout, state, name, HOLDER, command)
    };
    daemon(state, "etcd", &etcd(layout))?;
    daemon(state, "kube-apiserver", &api_server(layout))?;
    daemon(state, "containerd", &containerd(layout)?)
}

/// Starts what needs the API server.
pub(crate) fn start_rest(layout: &Layout, state: &mut State) -> Result<()> {
    let daemon = |state: &mut State, name: &str, command: &Cmd| {
        start::beside(layout, state, name, HOLDER, command)
    };
    daemon(
        state,
        "kube-controller-manager",
        &controller_manager(layout),
    )?;
    daemon(state, "kube-scheduler", &scheduler(layout))?;
    daemon(state, "kubelet", &kubelet(layout)?)?;
    daemon(state, "kube-proxy", &kube_proxy(layout))
}

/// Waits until the API server serves.
pub(crate) fn wait_for_api(layout: &Layout) -> Result<()> {
    wait_for("the API server is ready", Duration::from_secs(90), || {
        let probe = kubectl(layout, "admin").args(["get", "--raw=/readyz"]);
        probe
            .deadline(Duration::from_secs(5))
            .ok()
            .map(|_| Some(()))
    })
    .map_err(|error| start::with_log(layout, "kube-apiserver", error))?;
    step("The API server answers");
    Ok(())
}

/// Waits until pods can be scheduled.
pub(crate) fn wait_for_node(layout: &Layout) -> Result<()> {
    wait_for("the node registers", Duration::from_secs(60), || {
        let node = kubectl(layout, "admin").args(["get", "node", "node1"]);
        node.deadline(Duration::from_secs(5)).ok().map(|_| Some(()))
    })
    .and_then(|()| {
        let ready = [
            "wait",
            "--for=condition=Ready",
            "node/node1",
            "--timeout=60s",
        ];
        kubectl(layout, "admin")
            .args(ready)
            .deadline(Duration::from_secs(70))
            .ok()
    })
    .map_err(|error| start::with_log(layout, "kubelet", error))?;
    step("The node is Ready");
    Ok(())
}

/// kubectl as a user of the lab, on the node's network.
pub(crate) fn kubectl(layout: &Layout, user: &str) -> Cmd {
    net::inside(net::NODE, layout.tool("kubectl")).env("KUBECONFIG", layout.kubeconfig(user))
}

/// Brings an image archive into the node's containerd.
pub(crate) fn import_image(layout: &Layout, state: &State, archive: &Path) -> Result<()> {
    let holder = state.process(HOLDER).context("the node does not run")?;
    let enter = Cmd::new(layout.binary("kvpn-lab")).args(["enter", "--like"]);
    let ctr = Cmd::new("ctr").args(["-a", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "import"]);
    enter
        .arg(holder.pid.to_string())
        .arg("--")
        .command_of(&ctr.arg(archive))
        .deadline(Duration::from_secs(120))
        .ok()
        .with_context(|| format!("import {}", archive.display()))
        .map_err(|error| start::with_log(layout, "containerd", error))?;
    Ok(())
}

/// Waits until containerd serves.
pub(crate) fn wait_for_containerd(layout: &Layout, state: &State) -> Result<()> {
    let holder = state.process(HOLDER).context("the node does not run")?;
    let socket = format!("/proc/{}/root{CONTAINERD_SOCKET}", holder.pid);
    wait_for("containerd listens", Duration::from_secs(30), || {
        Ok(Path::new(&socket).exists().then_some(()))
    })
    .map_err(|error| start::with_log(layout, "containerd", error))
}

fn etcd(layout: &Layout) -> Cmd {
    Cmd::new(layout.tool("etcd"))
        .arg("--data-dir")
        .arg(layout.run().join("etcd"))
        .arg("--listen-client-urls=http://127.0.0.1:2379")
        .arg("--advertise-client-urls=http://127.0.0.1:2379")
        .arg("--listen-peer-urls=http://127.0.0.1:2380")
        // A throwaway cluster survives no power cut.
        .arg("--unsafe-no-fsync")
}

fn api_server(layout: &Layout) -> Cmd {
    let pki = layout.pki();
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
    Cmd::new(layout.tool("kube-apiserver"))
        .args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=::",
            "--secure-port=6443",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            // Names of nodes do not resolve.
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ])
        .arg(format!("--advertise-address={}", net::NODE_V4))
        .arg(format!(
            "--service-cluster-ip-range={}",
            net::SERVICE_CIDRS.join(",")
        ))
        .arg(file("client-ca-file", "ca.crt"))
        .arg(file("tls-cert-file", "apiserver.crt"))
        .arg(file("tls-private-key-file", "apiserver.key"))
        .arg(file("service-account-key-file", "sa.pub"))
        .arg(file("service-account-signing-key-file", "sa.key"))
        .arg(file("kubelet-client-certificate", "admin.crt"))
        .arg(file("kubelet-client-key", "admin.key"))
        .arg(file("kubelet-certificate-authority", "ca.crt"))
        .arg(file("requestheader-client-ca-file", "ca.crt"))
        .arg(file("proxy-client-cert-file", "front-proxy.crt"))
        .arg(file("proxy-client-key-file", "front-proxy.key"))
}

fn controller_manager(layout: &Layout) -> Cmd {
    let pki = layout.pki();
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
    Cmd::new(layout.tool("kube-controller-manager"))
        .args([
            "--leader-elect=false",
            "--use-service-account-credentials=true",
        ])
        .arg("--allocate-node-cidrs=true")
        .args(UNTHROTTLED)
        .arg(format!(
            "--kubeconfig={}",
            layout.kubeconfig("admin").display()
        ))
        .arg(format!("--cluster-cidr={}", net::POD_CIDRS.join(",")))
        .arg(format!(
            "--service-cluster-ip-range={}",
            net::SERVICE_CIDRS.join(",")
        ))
        .arg(file("service-account-private-key-file", "sa.key"))
        .arg(file("root-ca-file", "ca.crt"))
        .arg(file("cluster-signing-cert-file", "ca.crt"))
        .arg(file("cluster-signing-key-file", "ca.key"))
}

fn scheduler(layout: &Layout) -> Cmd {
    Cmd::new(layout.tool("kube-scheduler"))
        .arg("--leader-elect=false")
        .arg(format!(
            "--kubeconfig={}",
            layout.kubeconfig("admin").display()
        ))
}

fn kube_proxy(layout: &Layout) -> Cmd {
    Cmd::new(layout.tool("kube-proxy"))
        .args([
            "--proxy-mode=iptables",
            "--hostname-override=node1",
            "--iptables-min-sync-period=100ms",
            // The machine may not allow these to be set.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ])
        .arg(format!(
            "--kubeconfig={}",
            layout.kubeconfig("admin").display()
        ))
        .arg(format!("--cluster-cidr={}", net::POD_CIDRS.join(",")))
}

fn kubelet(layout: &Layout) -> Result<Cmd> {
    let (pki, run) = (layout.pki(), layout.run());
    let resolv_conf = run.join("node.resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\n")?;
    let config = run.join("kubelet.yaml");
    fs::write(
        &config,
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {pki}/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/kubelet.crt
tlsPrivateKeyFile: {pki}/kubelet.key
containerRuntimeEndpoint: unix://{CONTAINERD_SOCKET}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
clusterDNS: [{dns}]
clusterDomain: cluster.local
resolvConf: {resolv_conf}
failSwapOn: false
# The machine may withhold CAP_SYS_RESOURCE.
featureGates: {{KubeletInUserNamespace: true}}
localStorageCapacityIsolation: false
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}}
imageGCHighThresholdPercent: 100
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 200
kubeAPIBurst: 400
",
            pki = pki.display(),
            cgroup = cgroup::NAME,
            dns = net::CLUSTER_DNS_V4,
            resolv_conf = resolv_conf.display(),
        ),
    )?;
    Ok(Cmd::new(layout.tool("kubelet"))
        .arg(format!("--config={}", config.display()))
        .arg(format!(
            "--kubeconfig={}",
            layout.kubeconfig("kubelet").display()
        ))
        .arg("--hostname-override=node1")
        .arg(format!("--node-ip={},{}", net::NODE_V4, net::NODE_V6)))
}

fn containerd(layout: &Layout) -> Result<Cmd> {
    let run = layout.run();
    let cni = run.join("cni");
    fs::create_dir_all(&cni)?;
    fs::write(
        cni.join("10-lab.conflist"),
        r#"{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#,
    )?;
    let config = run.join("containerd.toml");
    fs::write(
        &config,
        format!(
            r#"version = 2
root = "{run}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # The machine may withhold CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"#,
            run = run.display(),
            pause = super::images::PAUSE.reference(),
            cni = cni.display(),
        ),
    )?;
    Ok(Cmd::new("containerd").arg("-c").arg(config))
}
