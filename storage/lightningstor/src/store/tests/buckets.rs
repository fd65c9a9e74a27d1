//! Changes of the bucket table across shards: two shards, three partitions.

use std::time::Duration;

use engine::ShardId;
use shards::placement::PlacementMap;
use shards::route::Router;

use super::super::{Groups, StoreShard};
use super::*;

#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) router: Router<StoreShard>,
    pub(super) groups: Groups,
}

/// Starts the node's engine and opens the stores of both shards.
pub(super) fn start(sim: &Sim, node: NodeId) -> Cluster {
    let mut engine = engine_config(2);
    let minute = Duration::from_mins(1);
    let groups = Groups {
        objects: engine.add_service("objects", 1, 64, minute),
        inner: engine.add_service("inner", 2, 64, minute),
    };
    let engine = sim.start(node, engine).unwrap();
    let stores = engine::Sharded::new(&engine);
    let cluster = Cluster {
        router: Router::new(&stores),
        groups,
    };
    let map = PlacementMap::spread(3, 2);
    let (router, first) = (cluster.router.clone(), map.clone());
    sim.run(node, 0, async move {
        engine::fs::create_dir_all(ROOT).await.unwrap();
        engine::fs::sync_dir("/").await.unwrap();
        router.install(first).await.unwrap();
    });
    for shard in 0..2 {
        let (stores, map) = (stores.clone(), map.clone());
        sim.run(node, shard, async move {
            let store = StoreShard::open(Path::new(ROOT), &config(), &map)
                .await
                .unwrap();
            stores.set_local(store);
        });
    }
    for shard in 0..2 {
        let at = cluster.clone();
        sim.run(node, shard, async move {
            at.router
                .values()
                .local()
                .load_buckets(&at.router, at.groups)
                .await
                .unwrap();
        });
    }
    cluster
}

fn bucket_name(text: &str) -> BucketName {
    BucketName::new(text).unwrap()
}

impl Cluster {
    fn create(
        &self,
        sim: &Sim,
        node: NodeId,
        shard: u16,
        text: &str,
    ) -> Result<Bucket, StoreError> {
        let (at, name) = (self.clone(), bucket_name(text));
        sim.run(node, shard, async move {
            let store = at.router.values().local();
            store
                .create_bucket(&at.router, at.groups, name, "me", 5)
                .await
        })
    }

    fn delete(&self, sim: &Sim, node: NodeId, shard: u16, id: BucketId) -> Result<(), StoreError> {
        let at = self.clone();
        sim.run(node, shard, async move {
            at.router
                .values()
                .local()
                .delete_bucket(&at.router, at.groups, id)
                .await
        })
    }

    /// Runs on the partition, on the shard that owns it.
    fn on<R: 'static, Fut: Future<Output = R> + 'static>(
        &self,
        sim: &Sim,
        node: NodeId,
        partition: u16,
        f: impl FnOnce(Rc<Partition>) -> Fut + 'static,
    ) -> R {
        let at = self.clone();
        sim.run(node, partition % 2, async move {
            f(at.router
                .values()
                .local()
                .partition(PartitionId(partition))
                .unwrap())
            .await
        })
    }

    fn names(&self, sim: &Sim, node: NodeId, shard: u16) -> Vec<String> {
        let at = self.clone();
        sim.run(node, shard, async move {
            assert_eq!(engine::shard_id(), ShardId(shard));
            let all = at.router.values().local().buckets().all();
            all.into_iter()
                .map(|bucket| bucket.name.to_string())
                .collect()
        })
    }
}

async fn put_one(store: Rc<Partition>, bucket: BucketId) -> Result<PutDone, StoreError> {
    let (meta, body) = (meta(b"x"), Some(buf(b"x")?));
    store
        .put_small(PutSmall {
            bucket,
            key: key("one"),
            meta,
            body,
            condition: Condition::None,
        })
        .await
}

#[test]
fn a_bucket_is_known_on_every_shard_before_its_creation_is_answered() {
    let sim = Sim::new(1);
    let node = sim.node("store");
    let cluster = start(&sim, node);
    let made = cluster.create(&sim, node, 1, "alpha").unwrap();
    assert_eq!(cluster.names(&sim, node, 0), ["alpha"]);
    assert_eq!(cluster.names(&sim, node, 1), ["alpha"]);
    let taken = cluster.create(&sim, node, 0, "alpha");
    assert_eq!(taken, Err(StoreError::BucketExists { owner: "me".into() }));
    cluster
        .on(&sim, node, 1, move |store| put_one(store, made.id))
        .unwrap();
    let unknown = cluster.on(&sim, node, 1, |store| put_one(store, BucketId(99)));
    assert_eq!(unknown, Err(StoreError::NoSuchBucket));
}

#[test]
fn a_bucket_goes_only_when_every_partition_is_empty_and_takes_its_uploads_along() {
    let sim = Sim::new(2);
    let node = sim.node("store");
    let cluster = start(&sim, node);
    let id = cluster.create(&sim, node, 0, "alpha").unwrap().id;
    cluster
        .on(&sim, node, 1, move |store| put_one(store, id))
        .unwrap();
    let upload = cluster.on(&sim, node, 2, move |store| async move {
        store.upload_create(id, key("up"), meta(b""), None).await
    });
    upload.unwrap();
    assert_eq!(
        cluster.delete(&sim, node, 1, id),
        Err(StoreError::BucketNotEmpty)
    );
    cluster
        .on(&sim, node, 1, move |store| put_one(store, id))
        .unwrap();
    cluster
        .on(&sim, node, 1, move |store| async move {
            store.delete(id, key("one"), Condition::None).await
        })
        .unwrap();
    cluster.delete(&sim, node, 1, id).unwrap();
    assert_eq!(
        cluster.delete(&sim, node, 1, id),
        Err(StoreError::NoSuchBucket)
    );
    assert_eq!(cluster.names(&sim, node, 1), Vec::<String>::new());
    let uploads = cluster.on(
        &sim,
        node,
        2,
        |store| async move { store.metrics().uploads },
    );
    assert_eq!(uploads, 0);
    let again = cluster.create(&sim, node, 0, "alpha").unwrap();
    assert!(again.id > id, "numbers are not reused");
}

#[test]
fn acknowledged_changes_of_the_table_survive_crashes() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let node = sim.node("store");
        let cluster = start(&sim, node);
        let first = cluster.create(&sim, node, 0, "first").unwrap();
        cluster.create(&sim, node, 1, "second").unwrap();
        cluster.delete(&sim, node, 1, first.id).unwrap();
        // One more change in progress, cut off anywhere.
        let at = cluster.clone();
        sim.spawn(node, 0, async move {
            let store = at.router.values().local();
            let name = bucket_name("third");
            store
                .create_bucket(&at.router, at.groups, name, "me", 5)
                .await
                .map(drop)
        });
        sim.run_for(Duration::from_micros(seed * 150));
        sim.crash(node);
        let cluster = start(&sim, node);
        let names = cluster.names(&sim, node, 1);
        assert!(
            names == ["second"] || names == ["second", "third"],
            "seed {seed}: {names:?}"
        );
        assert_eq!(names, cluster.names(&sim, node, 0), "seed {seed}");
        let fresh = cluster.create(&sim, node, 1, "fourth").unwrap();
        assert!(fresh.id.0 >= 3, "seed {seed}: numbers are not reused");
    }
}

#[test]
fn writes_and_the_removal_of_their_bucket_do_not_both_succeed() {
    for seed in 0..30 {
        let sim = Sim::new(seed);
        let node = sim.node("store");
        let cluster = start(&sim, node);
        let id = cluster.create(&sim, node, 0, "alpha").unwrap().id;
        let at = cluster.clone();
        let put = sim.spawn(node, 1, async move {
            put_one(
                at.router
                    .values()
                    .local()
                    .partition(PartitionId(1))
                    .unwrap(),
                id,
            )
            .await
        });
        let removed = cluster.delete(&sim, node, 0, id);
        let put = sim.join(&put).unwrap();
        match (put, removed) {
            (Ok(_), Err(StoreError::BucketNotEmpty)) | (Err(StoreError::NoSuchBucket), Ok(())) => {}
            both => panic!("seed {seed}: {both:?}"),
        }
    }
}
