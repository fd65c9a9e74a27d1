//! Backends that are killed in the middle of requests: who comes after them does those again, and the
//! driver is told of each once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use crate::driver::{CONFIG_WCE, Connection, EVENT_IDX, FLUSH, Guest, PACKED, SIZE};
use crate::support::{Backend, Disk, image, until};
use crate::trial::Patience;

const MIB: u64 = 1 << 20;
const FEATURES: u64 = FLUSH | CONFIG_WCE | EVENT_IDX;

/// Set in a process that is a backend, to its socket.
const SOCKET: &str = "UC_TEST_BACKEND_SOCKET";
/// Its image, when requests are to be done there, and not to hang.
const IMAGE: &str = "UC_TEST_BACKEND_IMAGE";

/// A backend in a process of its own.
pub struct Process(Child);

impl Process {
    pub fn start(socket: &Path, image: Option<&Path>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "killed::a_backend_in_a_process_serves_until_it_is_killed",
        ]);
        command.env(SOCKET, socket).stdout(Stdio::null());
        if let Some(image) = image {
            command.env(IMAGE, image);
        }
        Process(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The process above, or a look that it can be started and killed.
#[test]
fn a_backend_in_a_process_serves_until_it_is_killed() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for _ in 0..2 {
            let process = Process::start(&socket, None);
            drop(Connection::open(&socket, FEATURES));
            drop(process);
        }
        return;
    };
    let disk = std::env::var_os(IMAGE).map_or(Disk::Trial(MIB, Patience::Gate), |image| {
        Disk::File(image.into())
    });
    let _backend = Backend::listen(disk, &socket);
    loop {
        std::thread::park();
    }
}

/// A front end that comes back, as QEMU does.
struct Marks(VhostUserInflight, File);

impl Marks {
    /// How many requests are marked.
    fn count(&self, guest: &Guest) -> usize {
        // Head and state are as long.
        let unit = if guest.packed { 32 } else { 16 };
        let mut bytes = vec![0; unit * (usize::from(SIZE) + 1)];
        self.1.read_exact_at(&mut bytes, 0).unwrap();
        let states = bytes.chunks(unit).skip(1);
        states.filter(|state| state[0] == 1).count()
    }
}

fn features(guest: &Guest) -> u64 {
    FEATURES | if guest.packed { PACKED } else { 0 }
}

fn reconnect(socket: &Path, guest: &Guest, marks: &Marks) -> Connection {
    let mut connection = Connection::open(socket, features(guest));
    connection.share(guest);
    let set = connection
        .frontend
        .set_inflight_fd(&marks.0, marks.1.as_raw_fd());
    set.unwrap();
    // QEMU knows no more than the used index, which the marks make right.
    connection.start(guest, guest.begin());
    connection
}

#[test]
fn what_a_killed_backend_had_taken_is_done_by_the_next_in_order_and_once() {
    done_by_the_next(Guest::new());
}

#[test]
fn what_a_killed_backend_had_taken_of_a_packed_ring_is_done_by_the_next() {
    done_by_the_next(Guest::with(PACKED));
}

fn done_by_the_next(mut guest: Guest) {
    const HEADS: [u16; 5] = [6, 0, 12, 3, 9];
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let process = Process::start(&socket, None);
    let mut connection = Connection::open(&socket, features(&guest));
    connection.share(&guest);
    let (shape, file) = connection.marks();
    let marks = Marks(shape, file);
    let wce = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    connection.frontend.set_config(32, wce, &[0]).unwrap();
    connection.start(&guest, guest.begin());
    for head in HEADS {
        guest.put(Guest::data(head), &[head as u8 + 1; 4096]);
        guest.request(head, 1, u64::from(head) * 8, (4096, 0));
    }
    guest.kick();
    until("all are taken", || marks.count(&guest) == HEADS.len());
    drop((process, connection));
    assert_eq!(guest.used(), []);
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let mut connection = reconnect(&socket, &guest, &marks);
    let mut given = guest.wait(HEADS.len());
    given.sort_unstable();
    assert_eq!(given, [0, 3, 6, 9, 12].map(|head| (head, 1)));
    let stats = backend.stats();
    assert_eq!((stats.resubmitted, stats.errors), (5, 0));
    let image = std::fs::read(&path).unwrap();
    for head in HEADS {
        let at = usize::from(head) * 4096;
        assert_eq!(image[at..at + 4096], [head as u8 + 1; 4096]);
        assert_eq!(guest.status(head), 0);
    }
    assert_eq!(marks.count(&guest), 0);
    // The driver's choice of cache holds without being made again.
    let kept = connection.frontend.get_config(32, 1, wce, &[0]);
    assert_eq!(kept.unwrap().1, [0]);
    guest.request(0, 4, 0, (0, 0));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    backend.shutdown();
}

#[test]
fn backends_killed_under_load_lose_and_double_nothing() {
    killed_under_load(Guest::new());
}

#[test]
fn backends_killed_under_load_on_a_packed_ring_lose_and_double_nothing() {
    killed_under_load(Guest::with(PACKED));
}

fn killed_under_load(mut guest: Guest) {
    const HEADS: [u16; 5] = [0, 3, 6, 9, 12];
    let (dir, path) = image(4 * MIB);
    let socket = dir.path().join("s");
    let mut process = Process::start(&socket, Some(&path));
    let mut connection = Connection::open(&socket, features(&guest));
    connection.share(&guest);
    let (shape, file) = connection.marks();
    let marks = Marks(shape, file);
    connection.start(&guest, guest.begin());
    let (mut offered, mut given) = (0_u32, 0_u32);
    // The value that each block must have in the end, by its number.
    let mut model = vec![0_u8; 5 * 64];
    let mut write = |guest: &mut Guest, head: u16| {
        offered += 1;
        let slot = usize::from(head / 3) * 64 + offered as usize % 64;
        model[slot] = offered as u8;
        guest.put(Guest::data(head), &[offered as u8; 4096]);
        guest.request(head, 1, slot as u64 * 8, (4096, 0));
    };
    for head in HEADS {
        write(&mut guest, head);
    }
    guest.kick();
    for life in 0..8_u32 {
        // So many are given back, then it dies wherever it is.
        let goal = given + 50 + 13 * life;
        until("it works", || {
            for (head, _) in guest.used() {
                given += 1;
                assert_eq!(guest.status(head as u16), 0);
                write(&mut guest, head as u16);
                guest.kick();
            }
            given >= goal
        });
        drop((process, connection));
        process = Process::start(&socket, Some(&path));
        connection = reconnect(&socket, &guest, &marks);
        guest.kick();
    }
    given += guest.wait(HEADS.len()).len() as u32;
    assert_eq!(given, offered, "each is given back once");
    connection.frontend.reset_device().unwrap();
    assert_eq!(guest.used(), []);
    drop((process, connection));
    let image = std::fs::read(&path).unwrap();
    for (slot, value) in model.iter().enumerate() {
        let at = slot * 4096;
        assert!(
            image[at..at + 4096].iter().all(|byte| byte == value),
            "block {slot}"
        );
    }
}
