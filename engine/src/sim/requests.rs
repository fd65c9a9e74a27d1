//! Requests of the name space in the world: when they take effect, and what they answer.

use std::io;

use super::NodeId;
use super::disk::{Errno, Ordered};
use super::world::{Event, FsCall, FsSender, Handle, ShardKey, World};
use crate::backend::{FsOp, FsReply};

impl World {
    pub(super) fn submit_fs(&mut self, shard: ShardKey, op: FsOp, sender: FsSender) {
        let (state, node) = (&self.shards[shard as usize], self.node_of(shard));
        if !state.alive {
            return;
        }
        let from = state.clock;
        let (slow, upto) = {
            let disk = &self.nodes[node.0 as usize].disk;
            (disk.slow_factor, disk.seq())
        };
        let range = match &op {
            FsOp::SyncDir { .. } => &self.config.disk_sync_ns,
            _ => &self.config.name_ns,
        };
        let range = range.start.saturating_mul(slow)..range.end.saturating_mul(slow);
        let call = FsCall {
            shard,
            op,
            upto,
            sender,
        };
        self.schedule_within(from, &range, Event::Fs(Box::new(call)));
    }

    pub(super) fn fs_done(&mut self, call: FsCall) {
        if !self.shards[call.shard as usize].alive {
            return;
        }
        // A request that nobody waits for may still happen, as a cancelled write may.
        let opens = matches!(call.op, FsOp::Open { .. });
        if call.sender.is_canceled() && (opens || self.rng.once_in(2)) {
            return;
        }
        let node = self.node_of(call.shard);
        let reply = self.apply_fs(node, call.op, call.upto);
        let result = reply
            .as_ref()
            .map_or_else(|errno| -i64::from(*errno), |_| 0);
        self.note(node, "name", result);
        self.outbox.push((
            node,
            call.sender,
            reply.map_err(io::Error::from_raw_os_error),
        ));
    }

    fn apply_fs(&mut self, node: NodeId, op: FsOp, upto: u64) -> Result<FsReply, Errno> {
        let unnames = matches!(
            op,
            FsOp::RemoveFile { .. } | FsOp::Rename { .. } | FsOp::SyncDir { .. }
        );
        let reply = self.apply_name(node, op, upto);
        if unnames {
            let open = self.open_inodes(node);
            self.node(node).disk.collect(&open);
        }
        reply
    }

    fn apply_name(&mut self, node: NodeId, op: FsOp, upto: u64) -> Result<FsReply, Errno> {
        let sync_fails = matches!(op, FsOp::SyncDir { .. })
            && (self.rng.once_in(self.config.sync_fails_one_in)
                || Ordered::take(&mut self.node(node).disk.ordered.syncs));
        let state = self.node(node);
        let disk = &mut state.disk;
        match op {
            FsOp::Open { path, options } => {
                let inode = disk.open(&path, options.create, options.create_new)?;
                let (len, direct, write) = (disk.len(inode), options.direct, options.write);
                let handle = state.add_handle(Handle::File {
                    inode,
                    direct,
                    write,
                });
                return Ok(FsReply::Opened {
                    handle,
                    len,
                    direct,
                });
            }
            FsOp::CreateDirAll { path } => disk.create_dir_all(&path)?,
            FsOp::RemoveFile { path } => disk.remove_file(&path)?,
            FsOp::Rename { from, to } => disk.rename(&from, &to)?,
            FsOp::ReadDir { path } => return disk.read_dir(&path).map(FsReply::Entries),
            FsOp::SyncDir { path: _ } if sync_fails => return Err(libc::EIO),
            FsOp::SyncDir { path } => disk.sync_dir(&path, upto)?,
            FsOp::Metadata { path } => return disk.metadata(&path).map(FsReply::Metadata),
            FsOp::BootId => return Ok(FsReply::BootId(boot_id(node, state.boots))),
            FsOp::Space { path: _ } => return Ok(FsReply::Space(disk.space())),
            FsOp::SetLen { file, len } => match state.handles.get(&file) {
                Some(Handle::File {
                    inode, write: true, ..
                }) => disk.set_len(*inode, len)?,
                Some(_) => return Err(libc::EINVAL),
                None => return Err(libc::EBADF),
            },
            FsOp::Lock { file } => {
                let Some(Handle::File { inode, .. }) = state.handles.get(&file) else {
                    return Err(libc::EBADF);
                };
                if *state.locks.entry(*inode).or_insert(file) != file {
                    return Err(libc::EWOULDBLOCK);
                }
            }
        }
        Ok(FsReply::Done)
    }
}

fn boot_id(node: NodeId, boots: u64) -> [u8; 16] {
    (u128::from(node.0) << 64 | u128::from(boots)).to_be_bytes()
}
