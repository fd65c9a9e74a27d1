//! Files that lie in memory are read and written as any other file.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::os::fd::AsFd;
use std::path::PathBuf;

use engine::fs::{File, OpenOptions};
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, ShardId};

const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    create: true,
    create_new: true,
    direct: false,
    mode: 0o600,
};

fn list(mem: &GuestMem, ranges: &[(u64, u32)]) -> GuestList {
    let mut list = GuestList::new();
    for (offset, len) in ranges {
        let (offset, len) = (*offset, *len);
        list.push(mem, GuestIov { offset, len }).unwrap();
    }
    list
}

async fn work(path: PathBuf) {
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
    let mem = GuestMem::anonymous(1 << 20).unwrap();
    mem.copy_in(0, &bytes).unwrap();
    let file = File::open(&path, OPTIONS).await.unwrap();
    // One range, several, and more than is done at once.
    let whole = list(&mem, &[(0, 1 << 20)]);
    file.write_list_at(whole, 0).await.0.unwrap();
    let odd = list(&mem, &[(100, 1000), (5000, 3), (9000, 500)]);
    file.write_list_durable(odd, 1 << 20).await.0.unwrap();
    let into = GuestMem::anonymous(1 << 20).unwrap();
    for len in [1_u32, 4096, 128 << 10, 1 << 20] {
        into.fill_zero(0, 1 << 20).unwrap();
        let read = file.read_list_at(list(&into, &[(0, len)]), 4096).await.0;
        let there = ((1 << 20) - 4096 + 1503).min(len as usize);
        assert_eq!(read.unwrap(), there);
        let mut found = vec![0; there];
        into.copy_out(0, &mut found).unwrap();
        let mut wanted = bytes[4096..].to_vec();
        wanted.extend_from_slice(&bytes[100..1100]);
        wanted.extend_from_slice(&bytes[5000..5003]);
        wanted.extend_from_slice(&bytes[9000..9500]);
        assert!(found == wanted[..there], "{len} bytes");
    }
    // Past the end there is nothing.
    let past = file.read_list_at(list(&into, &[(0, 512)]), 2 << 20).await.0;
    assert_eq!(past.unwrap(), 0);
    // Memory that was cut short is an error of the transfer alone.
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(8192).unwrap();
    let cut = GuestMem::map(memory.as_fd(), 0, 8192).unwrap();
    memory.set_len(0).unwrap();
    let read = file.read_list_at(list(&cut, &[(0, 8192)]), 0).await.0;
    assert!(read.is_err());
    let mut first = [0; 4];
    let read = file.read_list_at(list(&into, &[(0, 4)]), 0).await.0;
    assert_eq!(read.unwrap(), 4);
    into.copy_out(0, &mut first).unwrap();
    assert_eq!(first, bytes[..4]);
}

/// Reads at once, in a turn that has time for it.
async fn read_now(file: &File, into: &GuestList, offset: u64) -> std::io::Result<()> {
    for _ in 0..1000 {
        engine::yield_now().await;
        if let Some(read) = file.read_list_now(into, offset) {
            return read;
        }
    }
    panic!("{} bytes at {offset} are not read at once", into.len());
}

async fn at_once(path: PathBuf) {
    let bytes: Vec<u8> = (0..256 << 10).map(|at: u32| (at ^ at >> 8) as u8).collect();
    let mem = GuestMem::anonymous(256 << 10).unwrap();
    mem.copy_in(0, &bytes).unwrap();
    let file = File::open(&path, OPTIONS).await.unwrap();
    assert!(file.is_in_memory());
    let into = GuestMem::anonymous(256 << 10).unwrap();
    let odd = list(&into, &[(100, 1000), (5000, 3), (9000, 500)]);
    assert!(file.read_list_now(&odd, 0).is_none(), "there is nothing");
    // Before and after the file has grown.
    for (from, offset) in [(0, 0), (0, 256 << 10)] {
        let all = list(&mem, &[(from, 256 << 10)]);
        file.write_list_at(all, offset).await.0.unwrap();
        into.fill_zero(0, 256 << 10).unwrap();
        read_now(&file, &odd, offset + 7).await.unwrap();
        let mut found = vec![0; 1503];
        odd.copy_out(0, &mut found).unwrap();
        assert_eq!(found, bytes[7..1510]);
    }
    // What is written later is read later.
    mem.copy_in(7, b"changed").unwrap();
    let part = list(&mem, &[(7, 7)]);
    file.write_list_at(part, 7).await.0.unwrap();
    let part = list(&into, &[(0, 7)]);
    read_now(&file, &part, 7).await.unwrap();
    let mut found = [0; 7];
    part.copy_out(0, &mut found).unwrap();
    assert_eq!(&found, b"changed");
    // More than is done at once, past the end, and past the end since the file was cut short.
    let large = list(&into, &[(0, (128 << 10) + 1)]);
    assert!(file.read_list_now(&large, 0).is_none());
    assert!(file.read_list_now(&part, (512 << 10) - 3).is_none());
    file.set_len(4096).await.unwrap();
    for offset in [4090, 4096, 100 << 10] {
        engine::yield_now().await;
        assert!(file.read_list_now(&part, offset).is_none(), "{offset}");
    }
    read_now(&file, &part, 4089).await.unwrap();
    // Memory that was cut short is an error.
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(8192).unwrap();
    let cut = GuestMem::map(memory.as_fd(), 0, 8192).unwrap();
    memory.set_len(0).unwrap();
    let cut = list(&cut, &[(0, 4096)]);
    assert!(read_now(&file, &cut, 0).await.is_err());
    // Somebody else cuts the file short under its mapping.
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    engine::yield_now().await;
    assert!(file.read_list_now(&part, 0).is_none());
}

#[test]
fn short_reads_of_memory_are_copies_done_at_once() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let worked = engine
        .handle()
        .call_blocking(ShardId(0), move |_| Box::pin(at_once(path)));
    worked.unwrap();
    engine.shutdown().unwrap();
}

#[test]
fn a_file_in_memory_is_a_file() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let worked = engine
        .handle()
        .call_blocking(ShardId(0), move |_| Box::pin(work(path)));
    worked.unwrap();
    engine.shutdown().unwrap();
}
