//! What XDP could do here: what the kernel has, what this user may, what the network's drivers bring.

use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::Check;
use super::host::{Capability, Host};

/// Drivers whose devices take XDP programs before the kernel makes a packet of what came in.
const NATIVE: [&str; 15] = [
    "atlantic",
    "bnxt_en",
    "ena",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "nfp",
    "tun",
    "veth",
    "virtio_net",
];

/// Whether the kernel has sockets that packets reach by XDP.
pub fn has_af_xdp() -> bool {
    // Without the right to make one the kernel says so, and with that it has them.
    let flags = SocketFlags::CLOEXEC;
    match socket_with(AddressFamily::XDP, SocketType::RAW, flags, None) {
        Ok(_) => true,
        Err(error) => error == rustix::io::Errno::PERM,
    }
}

/// What of XDP there is.
pub fn xdp(host: &Host, has_af_xdp: bool) -> Check {
    let may = host.has(Capability::SysAdmin)
        || (host.has(Capability::Bpf) && host.has(Capability::NetAdmin));
    let has_bpf = host
        .path("proc/sys/kernel/unprivileged_bpf_disabled")
        .exists();
    let mut missing = Vec::new();
    for (is_there, what) in [
        (has_bpf, "bpf() in the kernel"),
        (
            host.path("sys/kernel/btf/vmlinux").exists(),
            "BTF of the kernel",
        ),
        (has_af_xdp, "AF_XDP sockets in the kernel"),
        (
            may,
            "the right to load programs (CAP_BPF and CAP_NET_ADMIN)",
        ),
    ] {
        if !is_there {
            missing.push(what);
        }
    }
    let modes = modes(host);
    if missing.is_empty() {
        return Check::ok(
            "xdp",
            format!("possible: {modes}, else tc; no program was loaded"),
        );
    }
    let next = "FiberLB needs it, as PrismNet will; give the unit the rights, or take a \
                distribution's kernel";
    let found = format!("missing: {}; by driver: {modes}", missing.join(", "));
    Check::warn("xdp", found, next)
}

/// Each interface with a device, and the mode that its driver can.
fn modes(host: &Host) -> String {
    let mut modes = Vec::new();
    let entries = std::fs::read_dir(host.path("sys/class/net"));
    for entry in entries.into_iter().flatten().flatten() {
        let driver = std::fs::read_link(entry.path().join("device/driver"));
        let Some(driver) = driver.ok().and_then(|link| name(&link)) else {
            continue;
        };
        let mode = if NATIVE.contains(&driver.as_str()) {
            "native"
        } else {
            "generic"
        };
        modes.push(format!(
            "{mode} on {} ({driver})",
            entry.file_name().to_string_lossy()
        ));
    }
    modes.sort();
    if modes.is_empty() {
        return "generic alone, as no interface has a device".to_owned();
    }
    modes.join(", ")
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::State;
    use super::super::host::tests::machine;
    use super::*;

    #[test]
    fn xdp_needs_the_kernel_the_right_and_says_each_mode() {
        let (dir, host) = machine(&[
            ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
            ("sys/kernel/btf/vmlinux", "BTF"),
            ("proc/self/status", "CapEff:\t0000008000001000\n"),
            ("sys/class/net/eth0/device/class", ""),
            ("sys/class/net/eth1/device/class", ""),
            ("sys/class/net/lo/mtu", "65536"),
        ]);
        let net = dir.path().join("sys/class/net");
        symlink("../../drivers/virtio_net", net.join("eth0/device/driver")).unwrap();
        symlink("../../drivers/e1000", net.join("eth1/device/driver")).unwrap();
        let good = xdp(&host, true);
        assert_eq!(good.state, State::Ok);
        assert_eq!(
            good.found,
            "possible: generic on eth1 (e1000), native on eth0 (virtio_net), else tc; no program was loaded"
        );
        let bad = xdp(&host, false);
        assert_eq!(bad.state, State::Warn);
        assert!(
            bad.found.starts_with("missing: AF_XDP sockets"),
            "{}",
            bad.found
        );
        let (_dir, none) = machine(&[]);
        assert!(xdp(&none, true).found.contains("bpf() in the kernel, BTF"));
    }
}
