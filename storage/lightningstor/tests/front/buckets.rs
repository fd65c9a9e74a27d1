//! Buckets as the control layer administers them, beside what S3 shows of them.

use lightningstor::buckets::{BucketError, BucketPage, Buckets, Whose};
use lightningstor::store::{Bucket, StoreError};
use s3_wire::BucketName;

use crate::world::{BOB, ROOT, World, ask, serving};

fn name(text: &str) -> BucketName {
    BucketName::new(text).unwrap()
}

impl World {
    /// On one shard after the other, since all have to know the same.
    fn administer<R: 'static, Fut>(&self, shard: u16, f: impl FnOnce(Buckets) -> Fut) -> R
    where
        Fut: Future<Output = R> + 'static,
    {
        self.sim.run(self.server, shard, f(self.buckets()))
    }

    fn make(&self, shard: u16, caller: &'static str, text: &str) -> Result<Bucket, BucketError> {
        let made = name(text);
        self.administer(shard, |buckets| async move {
            buckets.create(caller, made).await
        })
    }

    fn remove(&self, shard: u16, caller: &'static str, text: &str) -> Result<(), BucketError> {
        let removed = name(text);
        self.administer(shard, |buckets| async move {
            buckets.delete(caller, &removed).await
        })
    }

    fn list(
        &self,
        caller: &'static str,
        whose: Whose<'static>,
        after: Option<&'static str>,
        limit: usize,
    ) -> Result<BucketPage, BucketError> {
        self.administer(1, |buckets| async move {
            buckets.list(caller, whose, after, limit)
        })
    }
}

fn names(page: &BucketPage) -> Vec<&str> {
    page.buckets.iter().map(|b| b.name.as_str()).collect()
}

#[test]
fn what_one_side_makes_the_other_sees_and_removes() {
    let world = serving(21);
    let made = world.make(1, "ann-id", "internal").unwrap();
    assert_eq!(made.owner, "ann-id");
    world.ask(ask("PUT", "/external")).expect(200);
    let listed = world.ask(ask("GET", "/")).expect(200);
    assert_eq!(listed.all("Name"), ["external", "internal"]);
    let page = world.list("ann-id", Whose::Own, None, 10).unwrap();
    assert_eq!(
        (names(&page), page.more),
        (vec!["external", "internal"], false)
    );
    for shard in [0, 1] {
        let wanted = name("internal");
        let found = world.administer(shard, |b| async move { b.get("ann-id", &wanted) });
        assert_eq!(found.unwrap(), made, "on shard {shard}");
    }

    assert_eq!(
        world.make(0, "ann-id", "external"),
        Err(BucketError::AlreadyOwned)
    );
    assert_eq!(
        world.make(0, "bob", "external"),
        Err(BucketError::AlreadyExists)
    );
    world
        .ask(ask("PUT", "/internal").by(BOB))
        .refused(409, "BucketAlreadyExists");
    world.ask(ask("PUT", "/internal/key").body("x")).expect(200);
    let not_empty = BucketError::Store(StoreError::BucketNotEmpty);
    assert_eq!(world.remove(0, "ann-id", "internal"), Err(not_empty));
    world.ask(ask("DELETE", "/internal/key")).expect(204);
    world.remove(0, "ann-id", "internal").unwrap();
    world.ask(ask("HEAD", "/internal")).expect(404);
    world.ask(ask("DELETE", "/external")).expect(204);
    let gone = BucketError::Store(StoreError::NoSuchBucket);
    assert_eq!(world.remove(1, "ann-id", "external"), Err(gone));
}

#[test]
fn what_belongs_to_another_is_neither_shown_nor_removed() {
    let world = serving(22);
    world.make(0, "ann-id", "anns").unwrap();
    world.make(0, "bob", "bobs").unwrap();
    let page = world.list("bob", Whose::Own, None, 10).unwrap();
    assert_eq!(names(&page), ["bobs"]);
    for whose in [Whose::Of("ann-id"), Whose::All] {
        assert_eq!(world.list("bob", whose, None, 10), Err(BucketError::Denied));
    }
    let of_itself = world.list("bob", Whose::Of("bob"), None, 10).unwrap();
    assert_eq!(names(&of_itself), ["bobs"]);
    let wanted = name("anns");
    let got = world.administer(0, |b| async move { b.get("bob", &wanted) });
    assert_eq!(got, Err(BucketError::Denied));
    assert_eq!(world.remove(1, "bob", "anns"), Err(BucketError::Denied));
    world.ask(ask("HEAD", "/anns")).expect(200);

    // The node's own user may do everything, and owns nothing of it.
    let root = |whose| world.list("root", whose, None, 10).unwrap();
    assert_eq!(names(&root(Whose::All)), ["anns", "bobs"]);
    assert_eq!(names(&root(Whose::Of("ann-id"))), ["anns"]);
    assert!(root(Whose::Own).buckets.is_empty());
    world.remove(1, "root", "anns").unwrap();
    world.ask(ask("HEAD", "/anns").by(ROOT)).expect(404);
}

#[test]
fn pages_are_in_the_order_of_names_and_lose_nothing() {
    let world = serving(23);
    for number in 0..7 {
        let owner = if number % 3 == 2 { "bob" } else { "ann-id" };
        world
            .make(number % 2, owner, &format!("bucket-{number}"))
            .unwrap();
    }
    let first = world.list("ann-id", Whose::Own, None, 2).unwrap();
    assert_eq!(
        (names(&first), first.more),
        (vec!["bucket-0", "bucket-1"], true)
    );
    let second = world
        .list("ann-id", Whose::Own, Some("bucket-1"), 2)
        .unwrap();
    assert_eq!(
        (names(&second), second.more),
        (vec!["bucket-3", "bucket-4"], true)
    );
    let third = world
        .list("ann-id", Whose::Own, Some("bucket-4"), 2)
        .unwrap();
    assert_eq!((names(&third), third.more), (vec!["bucket-6"], false));
    // A name that is none, or is gone since, is a place in the order all the same.
    let between = world
        .list("ann-id", Whose::Own, Some("bucket-5x"), 2)
        .unwrap();
    assert_eq!(names(&between), ["bucket-6"]);
}
