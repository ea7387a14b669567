//! The product's choice, queue and moves in a simulated mesh: a short piece of what
//! `cargo bench --bench fleet` runs, and what its simulator has to get right by formula.

#[path = "../../benches/fleet/sim/mod.rs"]
mod sim;

use sim::fleet::Fleet;
use sim::options::Options;
use sim::policy::Policy;
use sim::print;
use sim::results::{self, Plan};
use sim::server::{Engine, Job, Said};

const PLAN: Plan = Plan {
    rho: 0.3,
    seed: 1,
    seeds: 2,
    report_interval: None,
    fault: None,
    draw: 0,
    seconds: 1800.0,
    warm_up: 300.0,
};

#[test]
fn requests_end_far_sooner_than_under_hand_set_weights() {
    let policies = [Policy::Ours, Policy::LoadedFirst, Policy::Omniscient];
    let outcomes = results::run(&Fleet::usual(6), &PLAN, &policies);
    let [ours, rival, bound] = outcomes.as_slice() else { panic!("three policies ran") };
    assert!(ours.requests > 500 && ours.unanswered == 0, "{} requests", ours.requests);
    let told = format!("{:.2} s, {:.2} s, {:.2} s", ours.mean(), rival.mean(), bound.mean());
    assert!(ours.mean() * 1.5 < rival.mean(), "{told}");
    assert!(ours.mean() < 1.3 * bound.mean(), "{told}");
    assert!(ours.first(0.99) * 2.0 < rival.first(0.99), "{told}");
}

/// What a run with these options prints.
fn printed(options: &str) -> String {
    let args: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    let options = Options::read(&args).unwrap();
    let fleet = options.fleet().unwrap();
    let outcomes = results::run(&fleet, &options.plan, &options.policies);
    let mut out = Vec::new();
    print::table(&mut out, &options, &fleet, &outcomes).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_last_line_is_one_object_with_the_ratios_and_each_policy() {
    let fault = "--nodes 3 --hours 0.25 --seeds 1 --rho 0.2 --bare 0.34 --slots1 --fault blackhole";
    let text = printed(&format!("{fault} --only tailherd,omniscient,omniscient-moves --json"));
    let object: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(object["ratio_mean"].as_f64().unwrap() > 0.1, "{text}");
    assert!(object["ratio_p99_ttft"].as_f64().unwrap() > 0.1, "{text}");
    for (place, name) in ["tailherd", "omniscient", "omniscient-moves"].iter().enumerate() {
        let policy = &object["policies"][place];
        assert_eq!(policy["name"], *name);
        for key in ["mean_s", "p99_ttft_s", "loads_per_h", "slo"] {
            assert!(policy[key].is_number(), "{key}: {policy}");
        }
    }
}

#[test]
fn an_option_that_is_none_is_refused() {
    for args in ["--node 3", "--rho", "--rho x", "--fault loud", "--only nobody", "--bare 2"] {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        assert!(Options::read(&args).is_err(), "{args:?}");
    }
}

#[test]
fn the_same_seed_has_the_same_result() {
    let plan = Plan { seeds: 1, seconds: 900.0, warm_up: 100.0, ..PLAN };
    let once = || {
        let outcomes = results::run(&Fleet::usual(4), &plan, &[Policy::Ours, Policy::P2cEwma]);
        outcomes.iter().map(|o| (o.requests, o.mean(), o.whole(0.99))).collect::<Vec<_>>()
    };
    assert_eq!(once(), once());
}

fn job(id: u64, prompt: f64, output: f64) -> Job {
    Job { id, model: 0, session: id, prompt, fresh: prompt, output, luck: 1.0, preload: false }
}

/// When each job ended that is submitted at its time.
fn ends(engine: &mut Engine, jobs: &[(f64, Job)]) -> Vec<f64> {
    for (at, job) in jobs {
        engine.submit(*job, *at);
    }
    engine.advance(1e9);
    let mut ends = vec![f64::NAN; jobs.len()];
    for (at, said) in engine.take_said() {
        if let Said::Done(id, _) = said {
            ends[id as usize] = at;
        }
    }
    ends
}

fn lone_machine(slots: u32) -> Fleet {
    let text = format!(
        "{{machines: [{{name: 'one', prefill: 1000, decode: 50, slots: {slots}, gb: 10,
            loadGbs: 1, alpha: 0.5}}],
          models: [{{name: 'm', gb: 5, share: 1, lengths: 'conv'}}]}}"
    );
    Fleet::read(&text).unwrap()
}

#[test]
fn a_lone_request_takes_load_prompt_and_answer() {
    let mut engine = Engine::new(&lone_machine(1), 0);
    let ends = ends(&mut engine, &[(10.0, job(0, 2000.0, 100.0))]);
    assert!((ends[0] - (10.0 + 0.8 + 5.0 + 2.0 + 2.0)).abs() < 1e-6, "{ends:?}");
}

#[test]
fn an_answer_grows_token_by_token() {
    let mut engine = Engine::new(&lone_machine(1), 0);
    engine.submit(job(0, 2000.0, 100.0), 0.0);
    let mut written = |at| {
        engine.advance(at);
        engine.written(0)
    };
    // Loaded after 5.8 s, read after 7.8 s, ended after 9.8 s.
    assert_eq!((written(5.0), written(7.0)), (0.0, 0.0));
    assert!((written(8.8) - 50.0).abs() < 1e-6);
    assert_eq!(written(9.9), 0.0, "it is no longer there");
}

#[test]
fn two_side_by_side_share_what_the_batch_gains() {
    let mut engine = Engine::new(&lone_machine(2), 0);
    let ends = ends(&mut engine, &[(0.0, job(0, 0.0, 100.0)), (0.0, job(1, 0.0, 100.0))]);
    // Both at 50 * 2^0.5 / 2 tokens a second.
    let expect = 5.8 + 100.0 / (50.0 / 2f64.sqrt());
    assert!(ends.iter().all(|end| (end - expect).abs() < 0.01), "{ends:?} {expect}");
}

#[test]
fn one_slot_queues_as_the_formula_says() {
    // M/D/1: the mean wait is rho / (2 (1 - rho)) services.
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    let (rho, service) = (0.6, 2.0);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut now = 0.0;
    let jobs: Vec<(f64, Job)> = (0..20_000)
        .map(|id| {
            now += -(1.0 - rng.random::<f64>()).ln() * service / rho;
            // A session of its own, and a prompt of nothing: no cache, no reading.
            (now, job(id, 0.0, 100.0))
        })
        .collect();
    let mut engine = Engine::new(&lone_machine(1), 0);
    let ends = ends(&mut engine, &jobs);
    let waits = jobs.iter().zip(&ends).skip(100).map(|((at, _), end)| end - at - service);
    let mean = waits.sum::<f64>() / (jobs.len() - 100) as f64;
    let expect = rho / (2.0 * (1.0 - rho)) * service;
    assert!((mean / expect - 1.0).abs() < 0.08, "{mean} {expect}");
}

#[test]
fn a_scenario_that_makes_no_sense_is_refused_with_its_place() {
    for (text, place) in [
        ("{machines: []}", "machines"),
        (
            "{machines: [{name: 'x', prefill: 1, decode: 0, slots: 1, gb: 1, loadGbs: 1, alpha: 1}]}",
            "machines[0]",
        ),
        ("{machines: [{name: 'x', speed: 1}]}", "machines[0].speed"),
        ("{machines: [{name: 'x', prefill: 'a'}]}", "machines[0].prefill"),
    ] {
        let error = format!("{:#}", Fleet::read(text).unwrap_err());
        assert!(error.contains(place), "{error}");
    }
}
