//! Memory of mapped files: what outlives a process, and what outlives nothing.

use super::{one_node, start, writable};
use crate::SurvivingMem;
use crate::fs::{self, File};

const LEN: usize = 64 << 10;

async fn map() -> SurvivingMem {
    let file = File::open("/kept", writable()).await.unwrap();
    let mem = file.map_surviving(LEN).await.unwrap();
    fs::sync_dir("/").await.unwrap();
    mem
}

#[test]
fn mapped_memory_outlives_a_kill_and_the_boot_id_tells_of_a_power_cut() {
    let mut lost = 0;
    for seed in 0..16 {
        let (sim, node) = one_node(seed);
        let stored = sim.run(node, 0, async {
            let mem = map().await;
            for at in (0..LEN).step_by(4096) {
                mem.copy_in(at as u64 + 8, b"kept").unwrap();
                mem.store(at, 7).unwrap();
            }
            fs::boot_id().await.unwrap()
        });
        sim.kill(node);
        start(&sim, node);
        let seen = sim.run(node, 0, async {
            let mem = map().await;
            for at in (0..LEN).step_by(4096) {
                let mut bytes = [0; 4];
                mem.copy_out(at as u64 + 8, &mut bytes).unwrap();
                assert_eq!((mem.load(at).unwrap(), &bytes), (7, b"kept"));
            }
            fs::boot_id().await.unwrap()
        });
        assert_eq!(seen, stored);
        sim.crash(node);
        start(&sim, node);
        lost += sim.run(node, 0, async move {
            let mem = map().await;
            assert_ne!(fs::boot_id().await.unwrap(), stored);
            (0..LEN)
                .step_by(4096)
                .filter(|at| mem.load(*at).unwrap() == 0)
                .count()
        });
    }
    assert!(lost > 0, "a power cut leaves nothing to rely on");
}

#[test]
fn a_mapping_has_its_space_before_it_is_stored_to() {
    let (sim, node) = one_node(1);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        disk.set_capacity(disk.used_bytes());
        let file = File::open("/kept", writable()).await.unwrap();
        let refused = file.map_surviving(LEN).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        disk.set_capacity(1 << 30);
        let mem = file.map_surviving(LEN).await.unwrap();
        assert_eq!(mem.len(), LEN);
        assert!(disk.used_bytes() >= LEN as u64);
    });
}
