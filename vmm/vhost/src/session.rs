//! The messages of one front end, on a thread of their own.
//!
//! The `vhost` crate reads a message whole from a blocking socket, descriptors and all, and a front end
//! may stop in the middle of one for as long as it likes. A shard must not wait for that, and messages
//! are few, so each export has a small thread that does nothing but read them, check what of them needs
//! no state, and hand them to the shard one by one. Requests never come this way.
//!
//! Some messages that the crate does not know, or keeps to itself, are in [`extra`].

mod extra;
mod files;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};

use futures_channel::mpsc::UnboundedSender;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use crate::command::{Answer, Command, InflightShape, Refusal, SharedMemory};
use crate::inflight::marks_bytes;
use crate::memory::{REGIONS_MAX, RegionSpec};
use crate::ring::{RingAddr, SIZE_MAX};

/// What the message thread tells the shard, and where the answer goes.
pub(crate) enum Event {
    Connected,
    Message(
        Command,
        mpsc::SyncSender<std::result::Result<Answer, Refusal>>,
    ),
    /// The front end is gone; told when no request of its is in progress any more.
    Gone(mpsc::SyncSender<()>),
}

/// Base address that a postcopy would want; there is none here.
type NoBase = u64;

/// What the device does with vhost-user beyond its first version.
pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::STATUS
}

/// The shard, as the message thread sees it.
#[derive(Clone)]
pub(crate) struct Shard {
    events: UnboundedSender<Event>,
}

impl Shard {
    pub(crate) fn new(events: UnboundedSender<Event>) -> Shard {
        Shard { events }
    }

    /// Has the shard do what a message asks for, and waits for it.
    fn ask(&self, command: Command) -> Result<Answer> {
        let (answer, answered) = mpsc::sync_channel(1);
        let gone = |_| Error::BackendInternalError;
        self.events
            .unbounded_send(Event::Message(command, answer))
            .map_err(|_| Error::BackendInternalError)?;
        let answer = answered.recv().map_err(gone)?;
        answer.map_err(|refusal| Error::ReqHandlerError(io::Error::other(refusal.to_string())))
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.ask(command).map(drop)
    }
}

/// Serves one front end until it goes, breaks the protocol, or is refused something. When it returns,
/// nothing of the front end is in progress. The error is told to the log and to nobody else.
pub(crate) fn serve(
    shard: &Shard,
    stream: UnixStream,
    queues: u16,
    notice: &extra::Notice,
) -> Result<()> {
    let connected = shard.events.unbounded_send(Event::Connected);
    connected.map_err(|_| Error::BackendInternalError)?;
    let served = read_messages(shard, stream, queues, notice);
    notice.forget();
    let (done, drained) = mpsc::sync_channel(1);
    if shard.events.unbounded_send(Event::Gone(done)).is_ok() {
        // An error means that the shard has ended, and all requests with it.
        let _ = drained.recv();
    }
    match served {
        Err(Error::Disconnected) => Ok(()),
        served => served,
    }
}

fn read_messages(
    shard: &Shard,
    stream: UnixStream,
    queues: u16,
    notice: &extra::Notice,
) -> Result<()> {
    let socket = stream.try_clone().map_err(Error::SocketError)?;
    let messages = Arc::new(Mutex::new(Messages {
        shard: shard.clone(),
        queues,
        protocol: 0,
    }));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&messages));
    loop {
        let Some(header) = extra::Header::peek(&socket)? else {
            return Err(Error::Disconnected);
        };
        let protocol = match messages.lock() {
            Ok(messages) => messages.protocol,
            Err(_) => return Err(Error::BackendInternalError),
        };
        if !extra::handle(header, &socket, shard, protocol, notice)? {
            handler.handle_request()?;
        }
    }
}

pub(crate) use extra::Notice;

/// Turns the crate's calls into commands.
struct Messages {
    shard: Shard,
    queues: u16,
    /// The vhost-user features that the front end has agreed to.
    protocol: u64,
}

fn region(region: &VhostUserMemoryRegion, file: File) -> Result<RegionSpec> {
    files::check_memory(&file)?;
    Ok(RegionSpec {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        bytes: region.memory_size,
        offset: region.mmap_offset,
        file: file.into(),
    })
}

fn event(file: Option<File>) -> Result<Option<std::os::fd::OwnedFd>> {
    file.map(|file| {
        files::check_event(&file)?;
        Ok(file.into())
    })
    .transpose()
}

fn unexpected() -> Error {
    Error::BackendInternalError
}

impl VhostUserBackendReqHandlerMut for Messages {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated, and what it means was never settled: as QEMU's own back ends, a disable of all rings.
    fn reset_owner(&mut self) -> Result<()> {
        self.shard.tell(Command::Reset)
    }

    fn reset_device(&mut self) -> Result<()> {
        self.shard.tell(Command::Reset)
    }

    fn get_features(&mut self) -> Result<u64> {
        match self.shard.ask(Command::Features)? {
            Answer::Number(features) => Ok(features),
            _ => Err(unexpected()),
        }
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.shard.tell(Command::SetFeatures(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<NoBase>>> {
        let specs = regions.iter().zip(files);
        let specs = specs.map(|(spec, file)| region(spec, file));
        let specs = specs.collect::<Result<Vec<_>>>()?;
        self.shard.tell(Command::SetMemory(specs))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, queue: u32, size: u32) -> Result<()> {
        self.shard.tell(Command::SetSize { queue, size })
    }

    fn set_vring_addr(
        &mut self,
        queue: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        device: u64,
        driver: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let addr = RingAddr {
            descriptors,
            driver,
            device,
            log: logged.then_some(log),
        };
        self.shard.tell(Command::SetAddr { queue, addr })
    }

    fn set_vring_base(&mut self, queue: u32, base: u32) -> Result<()> {
        self.shard.tell(Command::SetBase { queue, base })
    }

    fn get_vring_base(&mut self, queue: u32) -> Result<VhostUserVringState> {
        match self.shard.ask(Command::TakeBase { queue })? {
            Answer::Number(base) => Ok(VhostUserVringState::new(queue, base as u32)),
            _ => Err(unexpected()),
        }
    }

    fn set_vring_kick(&mut self, queue: u8, file: Option<File>) -> Result<()> {
        let (queue, event) = (u32::from(queue), event(file)?);
        self.shard.tell(Command::SetKick { queue, event })
    }

    fn set_vring_call(&mut self, queue: u8, file: Option<File>) -> Result<()> {
        let (queue, event) = (u32::from(queue), event(file)?);
        self.shard.tell(Command::SetCall { queue, event })
    }

    fn set_vring_err(&mut self, queue: u8, file: Option<File>) -> Result<()> {
        let (queue, event) = (u32::from(queue), event(file)?);
        self.shard.tell(Command::SetError { queue, event })
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !protocol_features().bits() != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.queues))
    }

    fn set_vring_enable(&mut self, queue: u32, enable: bool) -> Result<()> {
        self.shard.tell(Command::Enable { queue, enable })
    }

    fn get_config(
        &mut self,
        offset: u32,
        len: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        match self.shard.ask(Command::Config { offset, len })? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        let bytes = bytes.to_vec();
        self.shard.tell(Command::SetConfig { offset, bytes })
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk has no shared objects"))
    }

    /// The memory is the front end's to keep; it comes back by SET_INFLIGHT_FD.
    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        if queues > self.queues || size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let bytes = marks_bytes(queues, size);
        let file = files::memory(bytes).map_err(Error::ReqHandlerError)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, marks: &VhostUserInflight, file: File) -> Result<()> {
        files::check_memory(&file)?;
        let memory = SharedMemory {
            file: file.into(),
            offset: marks.mmap_offset,
            bytes: marks.mmap_size,
        };
        let shape = InflightShape {
            queues: marks.num_queues,
            size: marks.queue_size,
        };
        self.shard.tell(Command::SetInflight(memory, shape))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        spec: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<NoBase>> {
        self.shard.tell(Command::AddRegion(region(spec, file)?))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.shard.tell(Command::RemoveRegion {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            bytes: region.memory_size,
        })
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk has no state of its own"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no state of its own"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk shares no memory"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        files::check_memory(&file)?;
        self.shard.tell(Command::SetLog(SharedMemory {
            file: file.into(),
            offset: log.mmap_offset,
            bytes: log.mmap_size,
        }))
    }
}
