//! FiberLB's part of the config.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use balancers::{AttachMode, NodeConfig, TunnelEnds, Tunnels};
use control_kit::config::Source;
use serde::Deserialize;
use toml::Spanned;

/// The directory of everything of FiberLB, in the data directory.
const ROOT: &str = "fiberlb";
const PIN_DIR: &str = "/sys/fs/bpf/ultracloud/fiberlb";
const FLOW_IDLE_S: u64 = 900;
const GUE_PORT: u16 = 6080;
/// Where there is no limit on new flows.
const SYN_COOKIES_ABOVE_PER_S: u32 = 10_000;
/// Bytes of an interface's name, as the kernel has it.
const INTERFACE_BYTES_MAX: usize = 15;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFiberLb {
    interfaces: Vec<Spanned<String>>,
    attach: Option<Spanned<String>>,
    pin_dir: Option<PathBuf>,
    detach_on_stop: bool,
    object: Option<PathBuf>,
    flows_max: Option<Spanned<u32>>,
    flow_idle_s: Option<Spanned<u64>>,
    new_flows_per_s: u32,
    syn_cookies_above_per_s: Option<u32>,
    tunnel_source_v4: Option<Ipv4Addr>,
    tunnel_source_v6: Option<Ipv6Addr>,
    gue_port: Option<Spanned<u16>>,
    tunnel_ends: Vec<Spanned<IpAddr>>,
    tunnel_end_interfaces: Vec<Spanned<String>>,
}

/// Puts the names of interfaces under a key to those that are taken already.
fn interfaces(
    names: Vec<Spanned<String>>,
    key: &str,
    taken: &mut Vec<String>,
    source: Source<'_>,
) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for name in names {
        let bytes = name.get_ref().len();
        if !(1..=INTERFACE_BYTES_MAX).contains(&bytes) || name.get_ref().contains('/') {
            let what = format!("{key} has a name that no interface can have");
            return source.refuse(&name.span(), &what);
        }
        if own.contains(name.get_ref()) {
            return source.refuse(&name.span(), &format!("{key} has an interface twice"));
        }
        if taken.contains(name.get_ref()) {
            let what = "an interface is balanced, or tunnels end at it, and not both";
            return source.refuse(&name.span(), what);
        }
        own.push(name.into_inner());
    }
    taken.extend_from_slice(&own);
    Ok(own)
}

/// The end of tunnels, which needs both addresses and interfaces.
fn tunnel_ends(
    addrs: Vec<Spanned<IpAddr>>,
    names: Vec<Spanned<String>>,
    taken: &mut Vec<String>,
    source: Source<'_>,
) -> Result<TunnelEnds> {
    let alone = match (&addrs[..], &names[..]) {
        ([addr, ..], []) => Some(addr.span()),
        ([], [name, ..]) => Some(name.span()),
        _ => None,
    };
    if let Some(span) = alone {
        let what = "fiberlb.tunnel_ends and fiberlb.tunnel_end_interfaces go together";
        return source.refuse(&span, what);
    }
    let key = "fiberlb.tunnel_end_interfaces";
    Ok(TunnelEnds {
        interfaces: interfaces(names, key, taken, source)?,
        addrs: addrs.into_iter().map(Spanned::into_inner).collect(),
    })
}

pub(super) fn validate(raw: RawFiberLb, data_dir: &Path, source: Source<'_>) -> Result<NodeConfig> {
    let mut taken = Vec::new();
    let balanced = interfaces(raw.interfaces, "fiberlb.interfaces", &mut taken, source)?;
    let (addrs, names) = (raw.tunnel_ends, raw.tunnel_end_interfaces);
    let tunnel_ends = tunnel_ends(addrs, names, &mut taken, source)?;
    let pins = raw.pin_dir.unwrap_or_else(|| PIN_DIR.into());
    let flows = source.number(
        raw.flows_max,
        balancers::FLOWS_MAX,
        1024..(1 << 26) + 1,
        "fiberlb.flows_max",
    )?;
    let key = "fiberlb.flow_idle_s";
    let idle = source.number(raw.flow_idle_s, FLOW_IDLE_S, 10..604_801, key)?;
    let gue_port = match raw.gue_port {
        Some(port) if *port.get_ref() == 0 => {
            return source.refuse(&port.span(), "fiberlb.gue_port is 0: 1 to 65535 is allowed");
        }
        Some(port) => port.into_inner(),
        None => GUE_PORT,
    };
    let attach = match &raw.attach {
        None => AttachMode::Auto,
        Some(word) => match &**word.get_ref() {
            "auto" => AttachMode::Auto,
            "native" => AttachMode::Native,
            "generic" => AttachMode::Generic,
            "tc" => AttachMode::Tc,
            _ => {
                let what = "fiberlb.attach is none of auto, native, generic and tc";
                return source.refuse(&word.span(), what);
            }
        },
    };
    Ok(NodeConfig {
        attach,
        root: data_dir.join(ROOT),
        interfaces: balanced,
        tunnel_ends,
        pins: (!pins.as_os_str().is_empty()).then_some(pins),
        object: raw.object,
        flows_max: flows,
        flow_idle: Duration::from_secs(idle),
        new_flows_per_s: raw.new_flows_per_s,
        syn_cookies_above_per_s: raw
            .syn_cookies_above_per_s
            .unwrap_or(match raw.new_flows_per_s {
                0 => SYN_COOKIES_ABOVE_PER_S,
                limit => limit,
            }),
        tunnels: Tunnels {
            source_v4: raw.tunnel_source_v4,
            source_v6: raw.tunnel_source_v6,
            gue_port,
        },
        detach_on_stop: raw.detach_on_stop,
    })
}
