//! What an agent does about its instances.

use kopek_core::Moment;
use kopek_core::assignment::{AssignedVolume, Assignment};
use kopek_core::converge::{HostAction, Local, Running, STOP_GRACE_MS, converge};
use kopek_core::desired::Standing;
use kopek_core::observed::Phase;
use kopek_core::placement::Stage;
use kopek_sim::rack::{self, rack};

const NOW: Moment = Moment(50_000);
/// The number of the rack's only site.
const NUMBER: u32 = 1;

/// What server `a` must do when it has one instance, `shop.1`.
fn assignment() -> Assignment {
    let mut cell = rack().server("a", 4).site("shop", 1).start();
    cell.settle(30_000);
    cell.written.pop_first().expect("a settled cell has assignments").1
}

/// An instance of the assigned site, in this phase.
fn known(phase: Phase) -> Local {
    Local::Known { phase, number: Some(NUMBER) }
}

fn complete(assignment: &Assignment) -> Running {
    Running { images: assignment.images.clone(), volumes: assignment.volumes.clone(), ..Running::default() }
}

fn with(mut running: Running, local: Local) -> Running {
    running.instances.insert("shop.1".parse().expect("an instance id"), local);
    running
}

fn doing(assignment: &Assignment, running: &Running) -> Vec<String> {
    let actions = converge(assignment, running, NOW).into_iter();
    actions
        .map(|action| match action {
            HostAction::Create { id, .. } => format!("create {id}"),
            HostAction::Wait { id, what } => {
                format!("{id} waits for {}", what.split(' ').next().expect("a first word"))
            }
            HostAction::Stop { id, grace_ms } => format!("stop {id} within {grace_ms}"),
            HostAction::Clean { id } => format!("clean {id}"),
        })
        .collect()
}

#[test]
fn an_instance_is_created_when_its_image_and_its_volume_are_complete() {
    let assignment = assignment();
    let mut running = complete(&assignment);
    assert_eq!(doing(&assignment, &running), ["create shop.1"]);
    let volume = running.volumes.values().next().unwrap().clone();
    let older = AssignedVolume { tree: rack::digest("shop", 0), ..volume.clone() };
    let of_another_site = AssignedVolume { number: NUMBER + 1, ..volume };
    for other in [older, of_another_site] {
        running.volumes.values_mut().for_each(|here| *here = other.clone());
        assert_eq!(doing(&assignment, &running), ["shop.1 waits for volume"], "{other:?}");
    }
    running.volumes.clear();
    assert_eq!(doing(&assignment, &running), ["shop.1 waits for volume"]);
    running.images.clear();
    assert_eq!(doing(&assignment, &running), ["shop.1 waits for image"]);
    let HostAction::Wait { what, .. } = converge(&assignment, &running, NOW).remove(0) else { panic!() };
    let waiting = with(running, known(Phase::Waiting { what }));
    assert_eq!(doing(&assignment, &waiting), [] as [&str; 0], "it says so once");
    let come = with(complete(&assignment), waiting.instances.into_values().next().unwrap());
    assert_eq!(doing(&assignment, &come), ["create shop.1"]);
}

#[test]
fn what_runs_as_assigned_is_left_alone() {
    let assignment = assignment();
    for phase in [Phase::Starting, Phase::Serving, Phase::Stopping] {
        let running = with(complete(&assignment), known(phase));
        assert_eq!(doing(&assignment, &running), [] as [&str; 0]);
    }
}

#[test]
fn an_instance_that_died_starts_again_when_its_time_has_come_unless_it_drains() {
    let mut assignment = assignment();
    let back_off = |until| {
        let running = Running::default(); // a restart goes on with what it had
        with(running, known(Phase::BackOff { until, why: "exit 1".to_owned() }))
    };
    assert_eq!(doing(&assignment, &back_off(NOW.plus_millis(1))), [] as [&str; 0]);
    assert_eq!(doing(&assignment, &back_off(NOW)), ["create shop.1"]);
    for instance in assignment.instances.values_mut() {
        instance.stage = Stage::Drain { until: Moment(90_000) };
    }
    assert_eq!(doing(&assignment, &back_off(NOW)), [] as [&str; 0]);
    let serving = with(complete(&assignment), known(Phase::Serving));
    assert_eq!(doing(&assignment, &serving), [] as [&str; 0], "a drained one finishes its requests");
}

#[test]
fn what_is_not_assigned_is_stopped_and_what_it_left_is_cleaned() {
    let mut assignment = assignment();
    assignment.instances.clear();
    let doing = |local| doing(&assignment, &with(complete(&assignment), local));
    assert_eq!(doing(known(Phase::Serving)), [format!("stop shop.1 within {STOP_GRACE_MS}")]);
    assert_eq!(doing(known(Phase::Starting)), [format!("stop shop.1 within {STOP_GRACE_MS}")]);
    assert_eq!(doing(known(Phase::Stopping)), [] as [&str; 0]);
    assert_eq!(doing(Local::Leftover), ["clean shop.1"]);
    let back_off = Phase::BackOff { until: NOW, why: String::new() };
    assert_eq!(doing(known(back_off)), ["clean shop.1"]);
}

#[test]
fn a_server_that_is_dead_or_catching_up_runs_nothing_and_ends_what_it_has_at_once() {
    let mut assignment = assignment();
    for standing in [Standing::Dead, Standing::Returning] {
        assignment.standing = standing;
        assert_eq!(doing(&assignment, &complete(&assignment)), [] as [&str; 0]);
        let running = with(complete(&assignment), known(Phase::Serving));
        assert_eq!(doing(&assignment, &running), ["stop shop.1 within 0"]);
    }
}

#[test]
fn a_leftover_of_an_assigned_instance_is_cleaned_before_it_is_created() {
    let assignment = assignment();
    assert_eq!(doing(&assignment, &with(complete(&assignment), Local::Leftover)), ["clean shop.1"]);
}

#[test]
fn an_instance_of_a_deleted_site_goes_before_one_of_a_later_site_of_that_name_is_created() {
    let assignment = assignment();
    let earlier = |phase| with(complete(&assignment), Local::Known { phase, number: Some(NUMBER + 1) });
    for phase in [Phase::Starting, Phase::Serving] {
        assert_eq!(doing(&assignment, &earlier(phase)), ["stop shop.1 within 0"]);
    }
    assert_eq!(doing(&assignment, &earlier(Phase::Stopping)), [] as [&str; 0]);
    let back_off = Phase::BackOff { until: NOW, why: String::new() };
    assert_eq!(doing(&assignment, &earlier(back_off)), ["clean shop.1"]);
}
