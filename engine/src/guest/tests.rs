//! Mappings, lists and windows on real memfds, those that are cut short included.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::{GuestIov, GuestList, GuestMem, IOV_MAX};
use crate::net::{Addr, ListenOptions, Listener, TcpStream};
use crate::{Engine, EngineConfig, IoBuf, ShardId};

fn memfd(len: u64) -> File {
    // SAFETY: memfd_create reads a NUL-terminated name and returns a new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
    let file = File::from(fd);
    file.set_len(len).unwrap();
    file
}

fn iov(offset: u64, len: u32) -> GuestIov {
    GuestIov { offset, len }
}

#[test]
fn regions_begin_at_any_byte_and_end_with_the_file() {
    let ram = memfd(16_384);
    ram.write_all_at(b"here", 5000).unwrap();
    let mem = GuestMem::map(ram.as_fd(), 5000, 11_384).unwrap();
    let mut seen = [0; 4];
    mem.copy_out(0, &mut seen).unwrap();
    assert_eq!(&seen, b"here");
    mem.copy_in(11_380, b"last").unwrap();
    ram.read_exact_at(&mut seen, 16_380).unwrap();
    assert_eq!(&seen, b"last");
    for (offset, len) in [(5000, 11_385), (16_384, 1), (u64::MAX, 2), (0, 0)] {
        let refused = GuestMem::map(ram.as_fd(), offset, len).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{offset}");
    }
}

#[test]
fn copies_outside_of_the_memory_are_refused() {
    let mem = GuestMem::anonymous(4096).unwrap();
    let mut two = [0; 2];
    for offset in [4095, 4096, u64::MAX, u64::MAX - 1] {
        let kinds = [
            mem.copy_out(offset, &mut two).unwrap_err().kind(),
            mem.copy_in(offset, &two).unwrap_err().kind(),
            mem.fill_zero(offset, 2).unwrap_err().kind(),
            mem.window(offset, 2, 1).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [io::ErrorKind::InvalidInput; 4], "{offset}");
    }
    mem.copy_out(4094, &mut two).unwrap();
    mem.copy_out(4096, &mut []).unwrap();
}

#[test]
fn memory_that_is_cut_short_is_broken_and_the_process_lives() {
    let ram = memfd(8192);
    let whole = memfd(4096);
    let mem = GuestMem::map(ram.as_fd(), 0, 8192).unwrap();
    let other = GuestMem::map(whole.as_fd(), 0, 4096).unwrap();
    let window = mem.window(4096, 16, 2).unwrap();
    mem.copy_in(4096, &[7; 16]).unwrap();
    ram.set_len(4096).unwrap();
    assert!(!mem.is_broken());
    let mut seen = [1; 16];
    let refused = mem.copy_out(4096, &mut seen).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    assert!(window.is_broken());
    assert_eq!(window.u16(0).load(Ordering::Acquire), 0);
    let mut list = GuestList::new();
    list.push(&mem, iov(0, 4096)).unwrap();
    assert!(list.is_broken());
    assert!(list.copy_in(0, &[1]).is_err());
    assert!(list.fill_zero(0..1).is_err());
    let refused = list.each_window(0..4096, drop).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    other.copy_in(0, &[1]).unwrap();
    assert!(!other.is_broken());
}

#[test]
fn a_place_in_the_table_forgets_that_its_last_mapping_broke() {
    for _ in 0..3 {
        let ram = memfd(4096);
        let mem = GuestMem::map(ram.as_fd(), 0, 4096).unwrap();
        mem.copy_in(0, &[1]).unwrap();
        ram.set_len(0).unwrap();
        assert!(mem.copy_in(0, &[1]).is_err());
    }
}

/// Set in the process that is to die.
const DIES: &str = "UC_TEST_DIES_OF_SIGBUS";

#[test]
fn a_fault_of_memory_that_is_not_guarded_still_ends_the_process() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    if std::env::var_os(DIES).is_none() {
        let name = "guest::tests::a_fault_of_memory_that_is_not_guarded_still_ends_the_process";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name]).env(DIES, "1");
        let status = child.output().unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status:?}");
        return;
    }
    // The handler is in place from here on.
    let _guarded = GuestMem::anonymous(4096).unwrap();
    let ram = memfd(0);
    // SAFETY: a new mapping, of which nobody knows; reading it faults, which is wanted.
    unsafe {
        let fd = ram.as_raw_fd();
        let base = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd,
            0,
        );
        assert_ne!(base, libc::MAP_FAILED);
        base.cast::<u8>().read_volatile();
    }
}

#[test]
fn lists_join_what_follows_in_memory_and_know_their_bytes() {
    let (one, two) = (
        GuestMem::anonymous(1 << 20).unwrap(),
        GuestMem::anonymous(1 << 20).unwrap(),
    );
    let mut list = GuestList::new();
    list.push(&one, iov(4096, 512)).unwrap();
    list.push(&one, iov(4608, 512)).unwrap();
    list.push(&one, iov(9000, 0)).unwrap();
    list.push(&two, iov(5120, 1024)).unwrap();
    list.push(&one, iov(0, 1)).unwrap();
    assert_eq!((list.ranges(), list.len()), (3, 2049));
    assert!(!list.is_aligned(512));
    assert!(list.slice(0..2048).is_aligned(512));
    assert!(!list.slice(1..513).is_aligned(512));
    for outside in [iov(1 << 20, 1), iov((1 << 20) - 1, 2), iov(u64::MAX, 1)] {
        assert!(list.push(&one, outside).is_err());
    }
    assert_eq!(list.len(), 2049);
}

#[test]
fn lists_copy_across_their_ranges() {
    let (one, two) = (
        GuestMem::anonymous(4096).unwrap(),
        GuestMem::anonymous(4096).unwrap(),
    );
    let mut list = GuestList::new();
    list.push(&one, iov(100, 3)).unwrap();
    list.push(&two, iov(0, 4)).unwrap();
    list.push(&one, iov(0, 5)).unwrap();
    list.copy_in(0, b"abcdefghijkl").unwrap();
    let mut seen = [0; 12];
    list.copy_out(0, &mut seen).unwrap();
    assert_eq!(&seen, b"abcdefghijkl");
    let part = list.slice(2..9);
    let mut inner = [0; 5];
    part.copy_out(1, &mut inner).unwrap();
    assert_eq!(&inner, b"defgh");
    part.copy_in(4, b"XY").unwrap();
    part.fill_zero(0..2).unwrap();
    list.copy_out(0, &mut seen).unwrap();
    assert_eq!(&seen, b"ab\0\0efXYijkl");
    assert_eq!(list.slice(5..5).len(), 0);
    list.truncate(20);
    assert_eq!(list.len(), 12);
    list.truncate(5);
    assert_eq!((list.len(), list.ranges()), (5, 2));
    list.truncate(3);
    assert_eq!((list.len(), list.ranges()), (3, 1));
    list.truncate(0);
    assert!(list.is_empty());
}

#[test]
fn windows_of_a_part_follow_its_ranges() {
    let (one, two) = (
        GuestMem::anonymous(4096).unwrap(),
        GuestMem::anonymous(4096).unwrap(),
    );
    let mut list = GuestList::new();
    list.push(&one, iov(100, 6)).unwrap();
    list.push(&two, iov(0, 4)).unwrap();
    list.push(&one, iov(8, 2)).unwrap();
    assert!(list.is_whole_in(2));
    assert!(!list.is_whole_in(4));
    list.copy_in(0, b"abcdefghijkl").unwrap();
    let mut seen = Vec::new();
    let copied = list.each_window(4..11, |window| {
        for at in 0..window.len() {
            // SAFETY: inside of the window, and nobody else has the memory.
            seen.push(unsafe { window.as_ptr().add(at).read_volatile() });
        }
        seen.push(b' ');
    });
    copied.unwrap();
    assert_eq!(seen, b"ef ghij k ");
}

#[test]
fn lists_are_bounded() {
    let mem = GuestMem::anonymous(1 << 20).unwrap();
    let mut list = GuestList::new();
    for place in 0..IOV_MAX as u64 {
        list.push(&mem, iov(place * 16, 8)).unwrap();
    }
    let full = list.push(&mem, iov(1 << 19, 8)).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(list.ranges(), IOV_MAX);
}

#[test]
fn windows_share_numbers_with_the_other_side() {
    let ram = memfd(4096);
    let mem = GuestMem::map(ram.as_fd(), 0, 4096).unwrap();
    let window = mem.window(64, 32, 16).unwrap();
    window.u16(2).store(0x0201, Ordering::Release);
    window.u64(8).store(9, Ordering::Relaxed);
    window.u8(1).fetch_or(0x80, Ordering::Relaxed);
    window.write(16, [1, 2, 3]);
    let mut seen = [0; 19];
    ram.read_exact_at(&mut seen, 64).unwrap();
    assert_eq!(seen[1..4], [0x80, 1, 2]);
    assert_eq!((seen[8], &seen[16..]), (9, &[1, 2, 3][..]));
    ram.write_all_at(&[5; 4], 64).unwrap();
    assert_eq!(window.read(0), [5; 4]);
    assert!(mem.window(65, 8, 2).is_err());
}

#[test]
fn a_clone_of_many_ranges_is_no_part_of_the_list_that_goes_on() {
    let mem = GuestMem::anonymous(1 << 16).unwrap();
    let mut list = GuestList::new();
    for place in 0..9_u64 {
        let before = list.clone();
        let range = GuestIov {
            offset: place * 4096,
            len: 512,
        };
        list.push(&mem, range).unwrap();
        let place = place as usize;
        assert_eq!((before.ranges(), before.len()), (place, 512 * place as u64));
        assert_eq!((list.ranges(), list.len()), (place + 1, before.len() + 512));
    }
    let whole = list.clone();
    list.truncate(700);
    assert_eq!((list.ranges(), whole.ranges()), (2, 9));
    assert!(whole.slice(0..700).is_aligned(4));
    let mut byte = [7];
    whole.copy_in(8 * 512, &byte).unwrap();
    mem.copy_out(8 * 4096, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn sockets_fill_a_part_and_send_it() {
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let addr = Addr::Unix(dir.path().join("socket"));
    let done = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let mut listener = Listener::bind(&addr, ListenOptions::default()).unwrap();
            let from = TcpStream::connect(&addr).await.unwrap();
            let to = listener.accept().await.unwrap();
            let mem = GuestMem::anonymous(8192).unwrap();
            mem.copy_in(100, b"from here").unwrap();
            mem.part(iov(8192, 1)).unwrap_err();
            from.send(mem.part(iov(100, 9)).unwrap()).await.0.unwrap();
            // More room than there are bytes: the rest begins behind them.
            let (got, part) = to.recv(mem.part(iov(4096, 12)).unwrap()).await;
            assert_eq!((got.unwrap(), part.len()), (9, 9));
            from.send(b"end".to_vec()).await.0.unwrap();
            let rest = part.rest().unwrap();
            let (got, part) = to.recv(rest).await;
            assert_eq!(got.unwrap(), 3);
            assert!(part.rest().is_none());
            let mut seen = [0; 12];
            mem.copy_out(4096, &mut seen).unwrap();
            assert_eq!(&seen, b"from hereend");
        })
    });
    done.unwrap();
    engine.shutdown().unwrap();
}
