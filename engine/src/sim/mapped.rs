//! Mapped files of a node. Their memory is the world's, so it outlives the processes that mapped it. A
//! store reaches no disk by itself, and what a file that was mapped holds after a power cut is anything:
//! page by page what was stored, or zeros.

use super::NodeId;
use super::disk::Errno;
use super::world::{Handle, World};
use crate::backend::RawHandle;
use crate::guest::GuestMem;

const PAGE: usize = 4096;

impl World {
    /// The memory of a file; the same for all that map it.
    pub(super) fn map_file(
        &mut self,
        node: NodeId,
        file: RawHandle,
        len: usize,
    ) -> Result<GuestMem, Errno> {
        let state = self.node(node);
        let Some(Handle::File {
            inode, write: true, ..
        }) = state.handles.get(&file)
        else {
            return Err(libc::EBADF);
        };
        if state.disk.len(*inode) < len as u64 {
            return Err(libc::EINVAL);
        }
        if let Some(mem) = state.mapped.get(inode).filter(|mem| mem.len() == len) {
            return Ok(mem.clone());
        }
        let mem = GuestMem::anonymous(len).map_err(|_| libc::ENOMEM)?;
        state.mapped.insert(*inode, mem.clone());
        Ok(mem)
    }

    /// The machine has lost power: pages had reached the disk, or not.
    pub(super) fn forget_mapped(&mut self, node: NodeId) {
        let (state, rng) = (&mut self.nodes[node.0 as usize], &mut self.rng);
        state.boots += 1;
        for mem in state.mapped.values() {
            for page in 0..mem.len() / PAGE {
                if rng.once_in(2) {
                    let zeroed = mem.fill_zero((page * PAGE) as u64, PAGE);
                    zeroed.expect("the page is inside of the memory");
                }
            }
        }
    }
}
