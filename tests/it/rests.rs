//! What fails rests, and is tried before it is used again; who takes nothing is not asked.
//!
//! The table of faults, and the tests that hold each row (`*`: pure, beside the code):
//!
//! | fault | tests |
//! |---|---|
//! | refused, timed out, reset | `dead_before_the_first_byte_means_the_other_node`, `a_node_whose_tailscaled_died_is_left_within_the_race` |
//! | a node sleeps; a pooled connection is a black hole | `a_request_that_waits_at_an_asleep_node_moves_on` (the vigil ends the wait, not a socket option) |
//! | it said that it would sleep | `what_a_sleeping_node_has_lingers_for_a_quarter_of_an_hour`\*, `who_takes_nothing_is_not_asked_and_a_client_that_means_him_is_told_why` |
//! | it is slow | `a_stream_of_a_quarter_of_the_usual_speed_is_slow_after_five_seconds`\*, `two_slow_answers_show_at_once_and_a_quick_one_ends_it`\* |
//! | it is back | `a_node_that_was_away_gets_one_request_until_one_was_answered`\*, `a_node_that_is_back_is_asked_although_it_was_just_lost` |
//! | busy (503, 429) | `busy_rests_shortly_and_twice_as_long_if_it_goes_on`\*, `busy_is_said_when_everybody_is`, `neither_a_quick_refusal_nor_a_client_that_leaves_says_how_fast_a_node_is` |
//! | its runner crashed | `after_a_crash_a_node_rests_and_then_one_request_tries_it`, `what_rests_is_asked_when_nobody_else_is_left` |
//! | the model is gone | `dead_before_the_first_byte_means_the_other_node` |
//! | the caller's own mistake | `the_callers_own_mistakes_are_not_tried_again` |
//! | the caller leaves | `neither_a_quick_refusal_nor_a_client_that_leaves_says_how_fast_a_node_is`, `a_client_that_leaves_frees_the_slot` |
//! | a pinned node is dead, or takes nothing | `a_pinned_node_that_is_dead_is_named_and_nobody_else_is_asked`, `who_takes_nothing_is_not_asked_and_a_client_that_means_him_is_told_why` |
//! | nobody has the model; all failed | `an_unknown_model_is_not_found`, `when_all_failed_the_client_is_told_so_in_its_dialect` |
//! | it breaks after the first byte | `a_stream_cut_in_the_middle_ends_in_an_error_item_in_every_dialect`, `what_breaks_after_its_first_byte_rests_and_a_client_that_leaves_breaks_nothing` |
//! | the coordinator is away | `the_coordinator_may_be_away` |

use serde_json::json;
use tailherd::app::control::Wish;
use tailherd::demo::client::{Answer, get};
use tailherd::demo::engine::{Cut, Fault};
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;

use crate::world::{SOON, Sends as _, World, count, counting, me, ms, served_by, until};

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
async fn what_breaks_after_its_first_byte_rests_and_a_client_that_leaves_breaks_nothing() {
    let world = two("60s").await;
    let long = || world.post("laptop", "/api/generate", count("count", 3000));
    let mut stream = long().open().await.unwrap();
    stream.lines(3).await;
    drop(stream);
    let engine = world.engine("gpu");
    assert!(engine.until(SOON, |c| c.running == 0 && c.cancelled > 0).await);
    assert_eq!((served_by(&ask(&world).await), breaker(&world).await), ("gpu", None));
    // To us its sidecar says that the answer failed, in an item of the stream.
    engine.cut_after(Some((5, Cut::Crash)));
    let broken = long().send().await;
    assert_eq!((broken.status, served_by(&broken)), (200, "gpu"), "{}", broken.text());
    assert!(broken.text().contains("\"error\""), "{}", broken.text());
    engine.cut_after(None);
    assert!(until(async || breaker(&world).await == Some(1)).await);
    let answer = ask(&world).await;
    assert_eq!((served_by(&answer), answer.header("x-tailherd-attempts")), ("nas", "1"));
    // That of a sidecar itself, which says nothing any more.
    let mut stream = long().open().await.unwrap();
    stream.lines(1).await;
    world.node("nas").quit();
    let rest = stream.rest().await;
    assert!(rest.text().contains("in mid-reply"), "{}", rest.text());
    let metrics = async || get(world.node("laptop").admin(), "/metrics").send().await;
    let rests = async || {
        let metrics = metrics().await;
        let mut lines = metrics.text().lines().filter(|l| l.starts_with("tailherd_breaker_open{"));
        lines.any(|l| l.contains("\"nas\"") && l.ends_with(" 1"))
    };
    assert!(until(rests).await, "{}", metrics().await.text());
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

/// Waits until the laptop knows for whom a node works.
async fn knows(world: &World, node: &str, accepting: &str) {
    let so = async || {
        let status = world.status("laptop").await;
        let peers = status["peers"].as_array().unwrap();
        peers.iter().any(|p| p["name"] == node && p["accepting"] == accepting)
    };
    assert!(until(so).await, "{node}: {:#}", world.status("laptop").await["peers"]);
}

#[tokio::test]
async fn who_takes_nothing_is_not_asked_and_a_client_that_means_him_is_told_why() {
    let world = two("60s").await;
    let seen = |node| world.engine(node).seen_at("/api/generate").len();
    let (gpu, nas) = (seen("gpu"), seen("nas"));
    world.node("gpu").obey(Wish::Pause { seconds: Some(7200) }).await.unwrap();
    knows(&world, "gpu", "none").await;
    let answer = ask(&world).await;
    let by = (served_by(&answer), answer.header("x-tailherd-attempts"));
    assert_eq!(by, ("nas", "1"), "it is not even tried: {}", answer.text());
    let pinned = world.post("laptop", "/api/generate", count("count@gpu", 2)).send().await;
    assert_eq!(pinned.status, 503);
    assert!(pinned.text().contains("\"gpu is paused until "), "{}", pinned.text());

    world.node("nas").obey(Wish::Drain).await.unwrap();
    knows(&world, "nas", "none").await;
    let nobody = ask(&world).await;
    let text = nobody.text();
    assert_eq!(nobody.status, 503);
    for part in ["model 'count' now: gpu is paused until ", "; nas is draining"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!((seen("gpu"), seen("nas")), (gpu, nas + 1));

    world.node("gpu").obey(Wish::Resume).await.unwrap();
    knows(&world, "gpu", "all").await;
    assert_eq!(served_by(&ask(&world).await), "gpu");
}

#[tokio::test]
async fn a_node_that_works_for_its_owner_is_asked_by_his_devices_only() {
    let mine = json!({"share": {"when": "mine"}});
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("desk", me(), Some(counting("desk", ms(2)))).with(mine.clone()),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(counting("gpu", ms(2)))).with(mine),
    ])
    .await;
    for node in ["desk", "gpu"] {
        world.sees("laptop", "count:latest", node).await;
        knows(&world, node, "mine").await;
    }
    for _ in 0..3 {
        assert_eq!(served_by(&ask(&world).await), "desk");
    }
    let pinned = world.post("laptop", "/api/generate", count("count@gpu", 2)).send().await;
    let why = "gpu works only for devices of its owner now (share.when is mine)";
    assert!(pinned.status == 503 && pinned.text().contains(why), "{}", pinned.text());
}

/// What the laptop has measured of gpu: tokens a second of answers and prompts, and the time to a
/// first token.
async fn measured(world: &World) -> [Option<f64>; 3] {
    let status = world.status("laptop").await;
    let offers = status["models"][0]["offers"].as_array().unwrap();
    let gpu = offers.iter().find(|o| o["peer"] == "gpu").unwrap();
    ["tokensPerSecond", "promptTokensPerSecond", "ttftMs"].map(|key| gpu[key].as_f64())
}

#[tokio::test]
async fn neither_a_quick_refusal_nor_a_client_that_leaves_says_how_fast_a_node_is() {
    let world = two("60s").await;
    let before = measured(&world).await;
    assert!(before[0].is_some());
    world.engine("gpu").fault(Some(Fault::Busy));
    for _ in 0..3 {
        let answer = ask(&world).await;
        assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
        tokio::time::sleep(ms(400)).await;
    }
    world.engine("gpu").fault(None);
    world.engine("gpu").slow(1000.0);
    for _ in 0..2 {
        let call = world.post("laptop", "/api/generate", count("count@gpu", 9)).send();
        assert!(tokio::time::timeout(ms(300), call).await.is_err(), "it is slow");
    }
    assert_eq!((measured(&world).await, breaker(&world).await), (before, None));
}
