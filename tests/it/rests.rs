//! What fails rests, and is tried before it is used again.

use serde_json::json;
use tailherd::demo::client::{Answer, get};
use tailherd::demo::engine::Fault;
use tailherd::demo::node::NodeSpec;

use crate::world::{Sends as _, World, count, counting, me, ms, served_by};

/// `count` on two nodes, of which gpu is much faster. What failed rests for `cooldown`.
async fn two(cooldown: &str) -> World {
    let rests = json!({"failover": {"cooldown": [cooldown]}});
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None).with(rests),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(2)))),
        NodeSpec::new("nas", me(), Some(counting("nas", ms(200)))),
    ])
    .await;
    for (node, tokens) in [("gpu", 40), ("nas", 4)] {
        world.sees("laptop", "count:latest", node).await;
        let learn = count(&format!("count@{node}"), tokens);
        assert_eq!(world.post("laptop", "/api/generate", learn).send().await.status, 200);
    }
    let answer = ask(&world).await;
    assert_eq!(served_by(&answer), "gpu", "{}", world.status("laptop").await["models"]);
    world
}

async fn ask(world: &World) -> Answer {
    world.post("laptop", "/api/generate", count("count", 2)).send().await
}

/// What the laptop's metric says of the breaker for gpu; `None` = it was never opened.
async fn breaker(world: &World) -> Option<u64> {
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    let mut lines = metrics.text().lines().filter(|l| l.starts_with("tailherd_breaker_open{"));
    lines.find(|l| l.contains("\"gpu\""))?.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn after_a_crash_a_node_rests_and_then_one_request_tries_it() {
    let world = two("6s").await;
    assert_eq!(breaker(&world).await, None);
    world.engine("gpu").fault(Some(Fault::Broken));
    for (n, attempts) in ["2", "1", "1"].into_iter().enumerate() {
        let answer = ask(&world).await;
        let by = (served_by(&answer), answer.header("x-tailherd-attempts"));
        assert_eq!(by, ("nas", attempts), "{n}: {}", answer.text());
        assert_eq!(breaker(&world).await, Some(1));
    }
    // Its engine works again. An answer that needs no model says nothing of that, nor does time.
    world.engine("gpu").fault(None);
    let show = world.post("laptop", "/api/show", r#"{"model":"count@gpu"}"#).send().await;
    assert_eq!(show.status, 200);
    tokio::time::sleep(ms(6100)).await;
    assert_eq!(breaker(&world).await, Some(1));
    world.engine("gpu").slow(300.0);
    let send = || tokio::spawn(world.post("laptop", "/api/generate", count("count", 3)).send());
    let many: Vec<_> = (0..4).map(|_| send()).collect();
    let mut by = Vec::new();
    for one in many {
        by.push(served_by(&one.await.unwrap()).to_owned());
    }
    assert_eq!(by.iter().filter(|node| *node == "gpu").count(), 1, "{by:?}");
    assert_eq!(breaker(&world).await, Some(0));
}

#[tokio::test]
async fn what_rests_is_asked_when_nobody_else_is_left() {
    let world = two("60s").await;
    for node in ["gpu", "nas"] {
        world.engine(node).fault(Some(Fault::Broken));
    }
    for _ in 0..2 {
        let answer = ask(&world).await;
        let all = answer.text().contains("gpu: ") && answer.text().contains("nas: ");
        assert_eq!((answer.status, all), (503, true), "{}", answer.text());
    }
    // gpu failed first, so its rest ends first.
    world.engine("nas").fault(None);
    let answer = ask(&world).await;
    let by = (answer.status, served_by(&answer), answer.header("x-tailherd-attempts"));
    assert_eq!(by, (200, "nas", "2"), "{}", answer.text());
    assert_eq!((served_by(&ask(&world).await), breaker(&world).await), ("nas", Some(1)));
}
