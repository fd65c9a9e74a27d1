//! Interfaces whose packets the program sees. Attaching a program may restart a network card's queues, which
//! takes longer than a shard may: it is done on threads of the control layer.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fiberlb::attach::{AttachMode, Attached, PINS, PINS_OF_TUNNELS};
use fiberlb::desired::{Mode, Proto, SynCookies};
use fiberlb::program::{FiberLb, MAPS, Program};
use fiberlb::with_causes;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::spec::Listener;

/// What becomes of an interface's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// They are balanced.
    Balance,
    /// Those that come through a tunnel to here leave it.
    EndTunnels,
}

impl Purpose {
    fn program(self) -> Program {
        match self {
            Purpose::Balance => Program::Balance,
            Purpose::EndTunnels => Program::Decapsulate,
        }
    }

    /// How it may be attached: tunnels end in XDP alone.
    fn mode(self, asked: AttachMode) -> AttachMode {
        match (self, asked) {
            (Purpose::EndTunnels, AttachMode::Tc) => AttachMode::Auto,
            _ => asked,
        }
    }

    /// Names of its pins, before a dash and the interface's index.
    fn pins(self) -> &'static [&'static str] {
        match self {
            Purpose::Balance => &PINS,
            Purpose::EndTunnels => &PINS_OF_TUNNELS,
        }
    }

    fn of_pin(name: &str) -> Option<Purpose> {
        let mut all = [Purpose::Balance, Purpose::EndTunnels].into_iter();
        all.find(|purpose| purpose.pins().contains(&name))
    }
}

/// One interface of the config.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its index, once it is there.
    pub index: Option<u32>,
    /// How it is attached.
    pub attached: Option<Attached>,
    /// Why it is not.
    pub error: Option<String>,
}

/// The programs, and where they are attached.
pub struct Attachments {
    lb: Mutex<FiberLb>,
    mode: AttachMode,
    pins: Option<PathBuf>,
    interfaces: Mutex<Vec<Interface>>,
}

impl Attachments {
    /// Attaches nothing yet.
    pub fn new(
        lb: FiberLb,
        mode: AttachMode,
        pins: Option<PathBuf>,
        names: impl Iterator<Item = (Purpose, String)>,
    ) -> Attachments {
        let interfaces = names.map(|(purpose, name)| Interface {
            name,
            purpose,
            index: None,
            attached: None,
            error: Some("the node starts".to_owned()),
        });
        Attachments {
            lb: Mutex::new(lb),
            mode,
            pins,
            interfaces: Mutex::new(interfaces.collect()),
        }
    }

    /// All interfaces and how they are.
    pub fn interfaces(&self) -> Vec<Interface> {
        let interfaces = self.interfaces.lock();
        interfaces.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name of an interface that is attached by traffic control.
    pub fn by_tc(&self) -> Option<String> {
        let all = self.interfaces().into_iter();
        let mut by_tc = all.filter(|one| one.attached == Some(Attached::Tc));
        by_tc.next().map(|interface| interface.name)
    }

    /// Attaches to what is not attached, and is there; blocks.
    pub fn attach(&self) {
        let mut lb = self.lb.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.interfaces();
        for interface in &mut all {
            let index = match index_of(&interface.name) {
                Ok(index) => index,
                Err(error) => {
                    let what = format!("there is no interface {}: {error}", interface.name);
                    if interface.error.as_ref() != Some(&what) {
                        tracing::warn!(interface = interface.name, %error, "not attached");
                    }
                    (interface.index, interface.attached) = (None, None);
                    interface.error = Some(what);
                    continue;
                }
            };
            if interface.index == Some(index) && interface.attached.is_some() {
                continue;
            }
            interface.index = Some(index);
            match self.attach_to(&mut lb, interface.purpose, index) {
                Ok(attached) => {
                    tracing::info!(interface = interface.name, ?attached, "attached");
                    interface.attached = Some(attached);
                    interface.error = None;
                }
                Err(why) => {
                    if interface.error.as_ref() != Some(&why) {
                        tracing::error!(interface = interface.name, why, "not attached");
                    }
                    interface.attached = None;
                    interface.error = Some(why);
                }
            }
        }
        *self
            .interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = all;
    }

    fn attach_to(
        &self,
        lb: &mut FiberLb,
        purpose: Purpose,
        index: u32,
    ) -> Result<Attached, String> {
        let (program, mode) = (purpose.program(), purpose.mode(self.mode));
        let error = match lb.attach(program, index, mode) {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        // The pins of an interface that is gone, whose index another one has got, or that had another purpose.
        let pins = self.pins.iter().flat_map(|dir| pins_of(dir, index));
        let removed = pins.filter(|pin| std::fs::remove_file(pin).is_ok()).count();
        if removed > 0
            && let Ok(attached) = lb.attach(program, index, mode)
        {
            return Ok(attached);
        }
        Err(with_causes(&error))
    }

    /// Ends attachments that an earlier process has pinned, of interfaces that the config has no more; blocks.
    pub fn detach_others(&self) {
        let Some(dir) = &self.pins else { return };
        let all = self.interfaces().into_iter();
        let kept: Vec<_> = all.filter_map(|i| Some((i.purpose, i.index?))).collect();
        for (pin, of) in pinned(dir) {
            if kept.contains(&of) {
                continue;
            }
            let (purpose, index) = of;
            match std::fs::remove_file(&pin) {
                Ok(()) => tracing::info!(index, ?purpose, "an interface is not attached any more"),
                Err(error) => {
                    tracing::error!(index, pin = %pin.display(), %error, "the pin stays");
                }
            }
        }
    }

    /// Ends all attachments and removes all pins of ours; blocks. Flows are forgotten. What others have put beside
    /// them stays, and the directory with it.
    pub fn remove(&self) -> std::io::Result<()> {
        let mut lb = self.lb.lock().unwrap_or_else(PoisonError::into_inner);
        for index in self.interfaces().iter().filter_map(|i| i.index) {
            lb.detach(index).map_err(std::io::Error::other)?;
        }
        let Some(dir) = &self.pins else { return Ok(()) };
        let links = pinned(dir).into_iter().map(|(pin, _)| pin);
        for pin in links.chain(MAPS.iter().map(|name| dir.join(name))) {
            match std::fs::remove_file(pin) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        }
    }
}

fn pins_of(dir: &Path, index: u32) -> impl Iterator<Item = PathBuf> {
    let names = PINS.iter().chain(&PINS_OF_TUNNELS);
    names.map(move |name| dir.join(format!("{name}-{index}")))
}

/// Pinned attachments of a directory.
fn pinned(dir: &Path) -> Vec<(PathBuf, (Purpose, u32))> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let pins = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (program, index) = name.split_once('-')?;
        let of = (Purpose::of_pin(program)?, index.parse().ok()?);
        Some((entry.path(), of))
    });
    pins.collect()
}

/// What of a listener an interface of traffic control cannot do.
pub fn needs_xdp(listener: &Listener) -> Option<&'static str> {
    match (listener.mode, listener.syn_cookies) {
        (Mode::Ipip, _) => Some("the mode ipip"),
        (Mode::Gue, _) => Some("the mode gue"),
        (_, SynCookies::Always) if listener.proto == Proto::Tcp => Some("syn_cookies: always"),
        _ => None,
    }
}

fn index_of(name: &str) -> std::io::Result<u32> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(&any, name)?)
}
