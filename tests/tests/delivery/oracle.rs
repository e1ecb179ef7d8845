//! Judges a world that has come to rest.

use super::events::{self, Read};
use super::world::World;
use std::collections::{BTreeMap, HashMap};
use vidette_collector::store::{Reader, Stored};
use vidette_protocol::id::Class;
use vidette_protocol::wire;

/// Every appended event is stored once, in order, at its number; every number that is not is in a gap.
pub(crate) fn judge(world: &mut World) -> Result<(), String> {
    let stored = everything(world)?;
    let mut lanes: BTreeMap<(u64, Class), BTreeMap<u64, Read>> = BTreeMap::new();
    let mut gaps = Vec::new();
    for row in &stored {
        let lane = lanes.entry((row.event.epoch, row.event.class)).or_default();
        if let Some((&last, _)) = lane.last_key_value()
            && last >= row.event.seq
        {
            return Err(format!("{} is stored after {last}: twice, or out of order", row.event));
        }
        let read = events::read(&row.body)?;
        if let Read::Gap(gap) = &read {
            gaps.push(gap.clone());
        }
        lane.insert(row.event.seq, read);
    }
    appended_is_stored(world, &lanes, &gaps)?;
    holes_are_explained(world, &lanes, &gaps)
}

fn everything(world: &World) -> Result<Vec<Stored>, String> {
    let mut reader = Reader::new(&world.store_folder()).map_err(|error| error.to_string())?;
    let mut stored: Vec<Stored> = Vec::new();
    loop {
        let after = stored.last().map_or(0, |row| row.id);
        let rows = reader.after(after, &[], 100).map_err(|error| error.to_string())?;
        if rows.is_empty() {
            return Ok(stored);
        }
        stored.extend(rows);
    }
}

fn appended_is_stored(
    world: &mut World,
    lanes: &BTreeMap<(u64, Class), BTreeMap<u64, Read>>,
    gaps: &[wire::Gap],
) -> Result<(), String> {
    let mut missing: HashMap<Class, u64> = HashMap::new();
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    for lane in lanes.values() {
        for (seq, read) in lane {
            if let Read::Marked(marker) = read
                && numbers.insert(*marker, *seq).is_some()
            {
                return Err(format!("marker {marker} is stored twice"));
            }
        }
    }
    for event in &world.appended {
        let here = lanes.get(&(event.epoch, event.class)).and_then(|lane| lane.get(&event.seq));
        match here {
            Some(Read::Marked(marker)) if *marker == event.marker && !event.poison => {}
            // The gap that tells of lost alerts has the number of the last of them.
            Some(Read::Gap(gap)) if covers(gap, event.class, event.seq) => {
                *missing.entry(event.class).or_default() += 1;
            }
            Some(_) => return Err(format!("something else is stored in the place of {event:?}")),
            None if gaps.iter().any(|gap| covers(gap, event.class, event.seq)) => {
                *missing.entry(event.class).or_default() += 1;
            }
            None => return Err(format!("{event:?} is not stored and no gap explains it")),
        }
    }
    for (class, missing) in missing {
        let counted: u64 =
            gaps.iter().filter(|gap| gap.class == class.to_wire()).filter_map(|gap| gap.count).sum();
        if counted < missing {
            return Err(format!("{missing} events of class {class} are missing, gaps count {counted}"));
        }
        world.seen.missing += missing;
    }
    world.seen.stored += numbers.len() as u64;
    let known = world.appended.iter().filter(|event| numbers.contains_key(&event.marker)).count();
    if known != numbers.len() {
        return Err("something is stored that was never appended".into());
    }
    Ok(())
}

fn holes_are_explained(
    world: &World,
    lanes: &BTreeMap<(u64, Class), BTreeMap<u64, Read>>,
    gaps: &[wire::Gap],
) -> Result<(), String> {
    for (class, last) in world.last_numbers()? {
        let epoch = world.epoch;
        for seq in 1..=last {
            let is_stored = lanes.get(&(epoch, class)).is_some_and(|lane| lane.contains_key(&seq));
            if !is_stored && !gaps.iter().any(|gap| covers(gap, class, seq)) {
                return Err(format!("{class} {seq} of {last} is a hole that no gap explains"));
            }
        }
    }
    Ok(())
}

fn covers(gap: &wire::Gap, class: Class, seq: u64) -> bool {
    gap.class == class.to_wire() && gap.first_seq <= seq && seq <= gap.last_seq
}
