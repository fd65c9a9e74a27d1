//! A file of the engine as a device, byte for byte: the raw image.
//!
//! Requests go straight from and to the guest's memory. What direct I/O does not take, because the
//! guest's memory is not aligned, goes through a buffer. A failed sync poisons the device: what was
//! written before may be lost, and no later sync may say otherwise.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::time::Duration;

use engine::fs::{File, OpenOptions};
use engine::sync::Notify;
use engine::{DmaBuf, GuestList, MAX_BUF};
use shards::block::{BlockDevice, BlockError, Geometry};

/// How long a request waits for a buffer.
const BUF_WAIT: Duration = Duration::from_secs(5);

/// See the module's head.
pub struct FileDevice {
    file: File,
    geometry: Cell<Geometry>,
    changed: Notify,
    poisoned: Cell<bool>,
}

impl FileDevice {
    /// Opens a file as a device of its size, in whole blocks.
    ///
    /// # Errors
    /// As the kernel says; the path is in the message.
    pub async fn open(
        path: impl AsRef<Path>,
        options: OpenOptions,
        serial: &str,
    ) -> io::Result<FileDevice> {
        let file = File::open(path, options).await?;
        let block_bytes = block_of(&file).await?;
        let bytes = file.opened_len();
        let geometry = Geometry {
            bytes: bytes - bytes % u64::from(block_bytes),
            block_bytes,
            physical_bytes: 4096,
            optimal_bytes: 64 << 10,
            discard_granularity: if options.write { 4096 } else { 0 },
            read_only: !options.write,
            serial: super::serial(serial),
        };
        Ok(FileDevice {
            file,
            geometry: Cell::new(geometry),
            changed: Notify::default(),
            poisoned: Cell::new(false),
        })
    }

    /// Makes the device larger. Front ends are told.
    ///
    /// # Errors
    /// When it would become smaller, or as the kernel says.
    pub async fn grow(&self, bytes: u64) -> Result<(), BlockError> {
        let mut geometry = self.geometry.get();
        if bytes < geometry.bytes || !bytes.is_multiple_of(u64::from(geometry.block_bytes)) {
            return Err(BlockError::Misaligned {
                offset: 0,
                len: bytes,
            });
        }
        self.file.set_len(bytes).await?;
        geometry.bytes = bytes;
        self.geometry.set(geometry);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether the kernel takes a transfer as it is.
    fn takes(&self, list: &GuestList) -> bool {
        !self.file.is_direct() || list.is_aligned(self.geometry.get().block_bytes)
    }

    fn sound(&self) -> Result<(), BlockError> {
        if self.poisoned.get() {
            return Err(BlockError::Io(io::Error::other(
                "an earlier sync of the file failed",
            )));
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), BlockError> {
        self.sound()?;
        let synced = self.file.datasync().await;
        if let Err(error) = &synced {
            // One that was not started has lost nothing.
            if error.kind() != io::ErrorKind::ResourceBusy {
                self.poisoned.set(true);
            }
        }
        // Another sync may have failed while this one was on its way.
        synced?;
        self.sound()
    }

    async fn read_by_buffer(&self, mut offset: u64, into: &GuestList) -> Result<(), BlockError> {
        let mut at = 0;
        while at < into.len() {
            let buf = buffer(into.len() - at).await?;
            let len = buf.len();
            let (read, slice) = self.file.read_at(buf.slice(0..len), offset).await;
            whole(read?, len)?;
            into.copy_in(at, &slice.into_inner()[..len])?;
            (at, offset) = (at + len as u64, offset + len as u64);
        }
        Ok(())
    }

    async fn write_by_buffer(&self, mut offset: u64, from: &GuestList) -> Result<(), BlockError> {
        let mut at = 0;
        while at < from.len() {
            let mut buf = buffer(from.len() - at).await?;
            let len = buf.len();
            from.copy_out(at, &mut buf)?;
            self.file.write_at(buf, offset).await.0?;
            (at, offset) = (at + len as u64, offset + len as u64);
        }
        Ok(())
    }
}

async fn buffer(bytes: u64) -> Result<DmaBuf, BlockError> {
    let len = bytes.min(MAX_BUF as u64) as usize;
    let buf = engine::take_buf_until(len, engine::now() + BUF_WAIT).await;
    buf.map_err(|_| BlockError::Busy)
}

fn whole(read: usize, wanted: usize) -> io::Result<()> {
    if read == wanted {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the file ended after {read} of {wanted} bytes"),
    ))
}

/// The smallest unit that the file's I/O takes.
async fn block_of(file: &File) -> io::Result<u32> {
    const SMALLEST: u32 = 512;
    if !file.is_direct() || file.opened_len() < 2 * u64::from(SMALLEST) {
        return Ok(SMALLEST);
    }
    let buf = engine::take_buf(SMALLEST as usize).map_err(io::Error::other)?;
    let probe = buf.slice(0..SMALLEST as usize);
    match file.read_at(probe, u64::from(SMALLEST)).await.0 {
        Ok(_) => Ok(SMALLEST),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(4096),
        Err(error) => Err(error),
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        self.sound()?;
        if !self.takes(&into) {
            return self.read_by_buffer(offset, &into).await;
        }
        let wanted = into.len() as usize;
        let (read, _) = self.file.read_list_at(into, offset).await;
        Ok(whole(read?, wanted)?)
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        self.sound()?;
        if self.takes(&from) {
            self.file.write_list_at(from, offset).await.0?;
        } else {
            self.write_by_buffer(offset, &from).await?;
        }
        if durable {
            self.sync().await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.sync().await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.sound()?;
        Ok(self.file.discard(offset, len).await?)
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        durable: bool,
    ) -> Result<(), BlockError> {
        self.sound()?;
        self.file.discard(offset, len).await?;
        if !may_unmap {
            self.file.allocate(offset, len).await?;
        }
        if durable {
            self.sync().await?;
        }
        Ok(())
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}
