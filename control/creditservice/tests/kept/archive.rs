//! Export and import between stores, and what an audit finds: CR-2.

use control_kit::store::{Condition, Txn, Write};
use creditservice::{Book, ErrorKind, Ledger, Metrics};
use futures_util::future::join_all;

use crate::support::*;

/// A ledger with some of everything.
async fn lived_in(world: &World) -> Ledger {
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 100).await.unwrap();
    join_all((0..60).map(|number| reserve(&ledger, 100 + number, 1))).await;
    ledger.commit(&[id(100), id(101)]).await.unwrap();
    ledger.release(&[id(102)]).await.unwrap();
    ledger.give_back(id(2), id(100), 1).await.unwrap();
    world.pass(1000).await;
    ledger.sweep().await.unwrap();
    reserve(&ledger, 300, 5).await.unwrap();
    ledger
}

#[tokio::test(start_paused = true)]
async fn a_ledger_moves_to_another_store_and_goes_on_there() {
    let (old, new) = (World::new(), World::new());
    let ledger = lived_in(&old).await;
    let export = ledger.export().await.unwrap();
    assert_eq!(Book::import(&export.text).unwrap().export(), export);
    let options = new.options(Metrics::default());
    let import = || Ledger::import(new.store.clone(), &options, &export.text);
    assert_eq!(import().await.unwrap(), export.sha256);
    let moved = new.ledger().await;
    assert_eq!(moved.export().await.unwrap(), export);
    // It is a ledger as any: holds, places and times are there.
    stands(&moved, (100, 1, 5, 94)).await;
    moved.commit(&[id(300)]).await.unwrap();
    reserve(&moved, 301, 94).await.unwrap();
    new.pass(1000).await;
    assert_eq!(moved.sweep().await.unwrap(), 1);
    stands(&moved, (100, 6, 0, 94)).await;
    let again = import().await.unwrap_err();
    assert!(
        again
            .to_string()
            .contains("there is a ledger: import below another prefix"),
        "{again}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_import_that_ended_half_way_goes_on_and_nothing_opens_before() {
    let (old, new) = (World::new(), World::new());
    let export = lived_in(&old).await.export().await.unwrap();
    let options = new.options(Metrics::default());
    // What an import has done when it ended after it had begun.
    let importing = Write::put("ledger/importing", export.sha256.clone());
    put(&new, vec![importing]).await;
    let early = Ledger::open(new.store.clone(), new.options(Metrics::default())).await;
    let early = early.err().unwrap();
    assert!(
        early.to_string().contains("an import has not ended"),
        "{early}"
    );
    let mut other = World::new().ledger().await.export().await.unwrap().text;
    let refused = Ledger::import(new.store.clone(), &options, &other)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("another export is imported"),
        "{refused}"
    );
    Ledger::import(new.store.clone(), &options, &export.text)
        .await
        .unwrap();
    assert_eq!(new.ledger().await.export().await.unwrap(), export);
    other.pop();
    let cut = Ledger::import(new.store.clone(), &options, &other)
        .await
        .unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::Damaged);
}

#[tokio::test(start_paused = true)]
async fn an_audit_finds_what_does_not_follow() {
    let account = format!("ledger/account/{}", vcpu().account());
    let used = format!("ledger/used/{}/{}", vcpu().used(), id(101));
    let history = format!("ledger/history/{}/{:020}", vcpu().used(), 1);
    let transfer = format!("ledger/transfer/{}", id(101));
    for (key, says) in [
        (&account, "is not there"),
        (&used, "does not follow"),
        (&history, "does not follow"),
        (&transfer, "the laws of a ledger do not hold"),
    ] {
        let world = World::new();
        let ledger = lived_in(&world).await;
        ledger.audit().await.unwrap();
        put(&world, vec![Write::Delete(key.clone())]).await;
        let error = ledger.audit().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", source.unwrap_or_default());
        assert!(text.contains(says), "{key}: {text}");
    }
    let world = World::new();
    let ledger = lived_in(&world).await;
    put(&world, vec![Write::put(account.clone(), "{")]).await;
    let error = ledger.audit().await.unwrap_err();
    assert!(error.to_string().contains(&account), "{error}");
    // A call on it says the same; what is asked of others at the same time is done.
    let fresh = world.ledger().await;
    let (other, nothing) = (quota("t2", "vcpu"), [id(997)]);
    let (error, limit, missing) = tokio::join!(
        reserve(&fresh, 999, 1),
        fresh.set_limit(id(998), &other, 7),
        fresh.release(&nothing),
    );
    limit.unwrap();
    assert_eq!(code(missing), "transfer-unknown");
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.next().contains("restore"), "{}", error.next());
}

#[tokio::test(start_paused = true)]
async fn another_format_is_not_opened() {
    let world = World::new();
    let format = Write::put("ledger/format", "ultracloud-ledger-2");
    put(&world, vec![format]).await;
    let opened = Ledger::open(world.store.clone(), world.options(Metrics::default())).await;
    let error = opened.err().unwrap();
    assert_eq!(
        error.to_string(),
        "ledger/format does not say ultracloud-ledger-1"
    );
}

async fn put(world: &World, writes: Vec<Write>) {
    let nothing = Condition::Absent("no-such-key".into());
    let txn = Txn {
        conditions: vec![nothing],
        writes,
        on_conflict: Vec::new(),
    };
    world.store.commit(txn).await.unwrap();
}
