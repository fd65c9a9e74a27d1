//! How the load balancer is put in the way of an interface's packets: in the driver, after it, or as a program
//! of traffic control.
//!
//! Attachments are pinned beside the maps, each under the name of its program and its interface's number. The
//! next process takes them over, with its own program in the place of the old one in one step
//! (`bpf_link_update`), so no packet meets an interface without a program.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};
use fiberlb_abi::program;

use crate::error::{Error, ErrorKind, Result, with_causes};
use crate::program::{FiberLb, Program, kernel, xdp_mut};

/// How an interface is to run the load balancer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachMode {
    /// As the first of the others that it can; what an earlier process did stays.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP after the driver.
    Generic,
    /// Traffic control: translation and direct return alone.
    Tc,
}

/// How an interface runs the load balancer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// In the driver.
    Native,
    /// After the driver, on packets that the stack has already made.
    Generic,
    /// As a program of traffic control.
    Tc,
    /// As it was: a pinned attachment of XDP was taken over.
    TakenOver,
}

/// Names of pins of the load balancer, before a dash and the interface's number.
pub const PINS: [&str; 2] = [program::BALANCE, program::BALANCE_TC];
/// As [`PINS`], of the end of tunnels.
pub const PINS_OF_TUNNELS: [&str; 1] = [program::DECAPSULATE];

impl FiberLb {
    /// Attaches a program to an interface. An attachment that an earlier process pinned is taken over where
    /// the mode allows it; one of another kind is ended when the new one is there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`] with what was said to each kind that was tried, and [`ErrorKind::Pinned`].
    pub fn attach(&mut self, program: Program, ifindex: u32, mode: AttachMode) -> Result<Attached> {
        let pin = |name: &str| {
            let dir = self.pins.as_ref()?;
            Some(dir.join(format!("{name}-{ifindex}")))
        };
        let balances = program == Program::Balance;
        let of_xdp = pin(program.name());
        let of_tc = pin(program::BALANCE_TC).filter(|_| balances);
        let mut refused = Vec::new();
        if mode != AttachMode::Tc {
            if let Some(pin) = of_xdp.as_ref().filter(|pin| pin.exists()) {
                let link = take_over_xdp(xdp_mut(&mut self.ebpf, program)?, pin)?;
                self.pinned.insert(ifindex, link);
                return end_other(of_tc).map(|()| Attached::TakenOver);
            }
            let has_tc = of_tc.as_ref().is_some_and(|pin| pin.exists());
            if has_tc && mode == AttachMode::Auto {
                self.attach_tc(ifindex, of_tc.as_deref())?;
                return Ok(Attached::Tc);
            }
            for (xdp_mode, is_asked, attached) in [
                (
                    XdpMode::Driver,
                    mode != AttachMode::Generic,
                    Attached::Native,
                ),
                (XdpMode::Skb, mode != AttachMode::Native, Attached::Generic),
            ] {
                if !is_asked {
                    continue;
                }
                match self.attach_xdp(program, ifindex, xdp_mode, of_xdp.as_deref())? {
                    Ok(()) => {
                        return end_other(of_tc).map(|()| attached);
                    }
                    Err(error) => {
                        tracing::info!(ifindex, ?attached, error, "XDP is refused");
                        refused.push(format!("{attached:?}: {error}"));
                    }
                }
            }
        }
        if balances && matches!(mode, AttachMode::Auto | AttachMode::Tc) {
            match self.attach_tc(ifindex, of_tc.as_deref()) {
                Ok(()) => return end_other(of_xdp).map(|()| Attached::Tc),
                Err(error) => refused.push(format!("Tc: {}", with_causes(&error))),
            }
        }
        let what = format!(
            "cannot attach {} to interface {ifindex}: {}",
            program.name(),
            refused.join("; ")
        );
        Err(Error::new(ErrorKind::Kernel, what))
    }

    /// What the kernel says when it refuses is no error of this call.
    fn attach_xdp(
        &mut self,
        program: Program,
        ifindex: u32,
        mode: XdpMode,
        pin: Option<&Path>,
    ) -> Result<std::result::Result<(), String>> {
        let xdp = xdp_mut(&mut self.ebpf, program)?;
        let link = match xdp.attach_to_if_index(ifindex, mode) {
            Ok(link) => link,
            Err(error) => return Ok(Err(with_causes(&error))),
        };
        if let Some(pin) = pin {
            let link = xdp.take_link(link);
            let link = link.map_err(|error| kernel("cannot take the link of XDP", error))?;
            self.pinned.insert(ifindex, pin_link(link, pin)?);
        }
        Ok(Ok(()))
    }

    /// Loads the program, if it is not, and attaches it or takes its attachment over.
    fn attach_tc(&mut self, ifindex: u32, pin: Option<&Path>) -> Result<()> {
        let tc = self.tc()?;
        if let Some(pin) = pin.filter(|pin| pin.exists()) {
            let link = take_over_tc(tc, pin)?;
            self.pinned.insert(ifindex, link);
            return Ok(());
        }
        let name = name_of(ifindex)?;
        // Before others, as XDP would be.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = tc.attach_with_options(&name, TcAttachType::Ingress, options);
        let link = link.map_err(|error| kernel("the kernel takes no program (tcx)", error))?;
        if let Some(pin) = pin {
            let link = tc.take_link(link);
            let link = link.map_err(|error| kernel("cannot take the link of tcx", error))?;
            self.pinned.insert(ifindex, pin_link(link, pin)?);
        }
        Ok(())
    }

    /// The program of traffic control, loaded at its first use: the kernel checks it for seconds.
    pub(crate) fn tc(&mut self) -> Result<&mut SchedClassifier> {
        let found = self.ebpf.program_mut(program::BALANCE_TC).ok_or_else(|| {
            let what = format!("the object has no program {}", program::BALANCE_TC);
            Error::new(ErrorKind::Object, what)
        })?;
        let tc: &mut SchedClassifier = found
            .try_into()
            .map_err(|error| kernel("it is not traffic control's", error))?;
        if tc.fd().is_err() {
            let what = "the kernel refuses FiberLB's program for traffic control";
            tc.load().map_err(|error| kernel(what, error))?;
        }
        Ok(tc)
    }

    /// Ends a pinned attachment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`] when the pin cannot be removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<()> {
        let Some(link) = self.pinned.remove(&ifindex) else {
            return Ok(());
        };
        let what = format!("cannot remove the pin of interface {ifindex}");
        let unpinned = link.unpin();
        unpinned
            .map(drop)
            .map_err(|error| Error::with(ErrorKind::Kernel, what, error))
    }
}

/// Ends the attachment of the other kind, now that there is one of this.
fn end_other(pin: Option<PathBuf>) -> Result<()> {
    let Some(pin) = pin.filter(|pin| pin.exists()) else {
        return Ok(());
    };
    std::fs::remove_file(&pin).map_err(|error| {
        let what = format!("cannot remove {}, the attachment before", pin.display());
        Error::with(ErrorKind::Pinned, what, error)
    })
}

/// Puts a program into a pinned attachment, in the place of the one before.
fn take_over_xdp(xdp: &mut Xdp, pin: &Path) -> Result<PinnedLink> {
    let link = XdpLink::try_from(open(pin)?).map_err(|error| not_taken(pin, error))?;
    let taken = xdp.attach_to_link(link);
    taken.map_err(|error| not_taken(pin, error))?;
    reopen(pin)
}

fn take_over_tc(tc: &mut SchedClassifier, pin: &Path) -> Result<PinnedLink> {
    let link = SchedClassifierLink::try_from(open(pin)?).map_err(|error| not_taken(pin, error))?;
    let taken = tc.attach_to_link(link);
    taken.map_err(|error| not_taken(pin, error))?;
    reopen(pin)
}

fn open(pin: &Path) -> Result<FdLink> {
    reopen(pin).map(FdLink::from)
}

fn reopen(pin: &Path) -> Result<PinnedLink> {
    PinnedLink::from_pin(pin).map_err(|error| not_taken(pin, error))
}

fn not_taken(pin: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let what = format!("cannot take over {}", pin.display());
    Error::with(ErrorKind::Pinned, what, error)
}

fn pin_link<L>(link: L, pin: &Path) -> Result<PinnedLink>
where
    FdLink: TryFrom<L>,
    <FdLink as TryFrom<L>>::Error: std::error::Error + Send + Sync + 'static,
{
    let what = format!("cannot pin {}", pin.display());
    let link =
        FdLink::try_from(link).map_err(|error| Error::with(ErrorKind::Pinned, &*what, error))?;
    link.pin(pin)
        .map_err(|error| Error::with(ErrorKind::Pinned, what, error))
}

/// The name of an interface of this thread's network.
fn name_of(ifindex: u32) -> Result<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the kernel's names fit, with the zero that ends them.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        let what = format!("there is no interface {ifindex}");
        let error = std::io::Error::last_os_error();
        return Err(Error::with(ErrorKind::Kernel, what, error));
    }
    let name = CStr::from_bytes_until_nul(&name).expect("the call wrote a zero");
    Ok(name.to_string_lossy().into_owned())
}
