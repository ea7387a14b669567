//! Everything that is tested over real sockets, in one binary so that linking stays cheap.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod architecture;
mod attempts;
mod by_hand;
mod commands;
mod discovery;
mod engine_faults;
mod engine_golden;
mod eve;
mod fleet;
mod guests;
mod hand;
mod hello;
mod http;
mod ladder;
mod ladder_rules;
mod lan;
mod localapi;
mod meet;
mod mesh_errors;
mod mesh_failover;
mod mesh_list;
mod mesh_stream;
mod moves;
mod one_node;
mod rates;
mod reports;
mod rests;
mod rules_body;
mod rules_caller;
mod rules_reach;
mod rules_secrets;
mod sharing;
mod tailscaled;
mod tour;
mod world;
