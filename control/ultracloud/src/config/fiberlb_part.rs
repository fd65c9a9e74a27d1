//! FiberLB's part of the config.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use balancers::{AttachMode, NodeConfig, Tunnels};
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
}

pub(super) fn validate(raw: RawFiberLb, data_dir: &Path, source: Source<'_>) -> Result<NodeConfig> {
    let mut interfaces = Vec::new();
    for name in raw.interfaces {
        let bytes = name.get_ref().len();
        if !(1..=INTERFACE_BYTES_MAX).contains(&bytes) || name.get_ref().contains('/') {
            let what = "fiberlb.interfaces has a name that no interface can have";
            return source.refuse(&name.span(), what);
        }
        if interfaces.contains(name.get_ref()) {
            return source.refuse(&name.span(), "fiberlb.interfaces has an interface twice");
        }
        interfaces.push(name.into_inner());
    }
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
        interfaces,
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
