"""People who carry a thing from room to room."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_EVENTS = (3, 4, 5, 6, 7, 9)
"""Events after the thing is first taken, by level."""
PEOPLE = {"a": "Ana", "b": "Bo", "c": "Cem"}
ROOMS = ("den", "gym", "lab", "bar", "spa", "pub", "zoo", "inn")


class Story(NamedTuple):
    """Events in order: `a:den` (a goes to the den), `a+` (a takes the key), `a-` (a puts it down)."""

    events: tuple[str, ...]


class Rooms(Family):
    """`ROOM a:den a+ b:gym a:lab a-?`: where the key is after every event."""

    name, skill, domain = "rooms", "simulation", "non_reasoning_qa"
    keyword, alias = "ROOM", "PLACE"
    answer_form = "word"
    max_answer_chars = 3
    templates = (
        "{told} Where is the key now?",
        "Follow the key. {told} In which place is the key at the end?",
        "Read what happens. {told} Where will someone find the key afterwards?",
        "A key lies in the {first}. Here is a report. {told} According to it, what is the last place of the key?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Events after the key is first taken."""
        return {"events": N_EVENTS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Story:
        """Somebody goes to a place and takes the key; then people move, put it down and take it."""
        person, room = rng.choice(list(PEOPLE)), rng.choice(ROOMS)
        events, where, holder = [f"{person}:{room}", f"{person}+"], {person: room}, person
        place = room
        for _ in range(N_EVENTS[level - 1]):
            act, actor = rng.random(), rng.choice(list(PEOPLE))
            if holder and act < 0.25 and events[-1][1:] != "+":
                events.append(f"{holder}-")
                place, holder = where[holder], ""
            elif not holder and where.get(actor) == place and act < 0.6 and events[-1][1:] != "-":
                events.append(f"{actor}+")
                holder = actor
            else:
                mover = holder if holder and act > 0.6 else actor
                where[mover] = rng.choice([r for r in ROOMS if r != where.get(mover)])
                events.append(f"{mover}:{where[mover]}")
        return Story(tuple(events))

    def level_of(self, problem: Story) -> int:
        """From the number of events."""
        return rung(N_EVENTS, len(problem.events) - 2)

    def compact(self, problem: Story) -> str:
        """Write the question, e.g. `ROOM a:den a+ b:gym a:lab a-?`."""
        return f"ROOM {' '.join(problem.events)}?"

    def fields(self, problem: Story) -> dict[str, object]:
        """The events in words."""
        told = []
        for event in problem.events:
            name = PEOPLE[event[0]]
            acts = {"+": f"{name} takes the key.", "-": f"{name} puts the key down."}
            told.append(acts.get(event[1:], f"{name} goes to the {event[2:]}."))
        return {"told": " ".join(told), "first": problem.events[0][2:]}

    def answer(self, problem: Story) -> str:
        """Follow people and key forwards."""
        return _places(problem)[-1]

    def verify(self, problem: Story) -> str:
        """Look backwards: who touched the key last, and where that person was, at the end or when the key was put down."""
        touched = max(i for i, event in enumerate(problem.events) if event[1:] in ("+", "-"))
        person, carried = problem.events[touched][0], problem.events[touched][1] == "+"
        seen = problem.events if carried else problem.events[:touched]
        return next(event[2:] for event in reversed(seen) if event[0] == person and event[1] == ":")

    def steps(self, problem: Story) -> tuple[str, ...]:
        """Write the place of the key after every event."""
        return tuple(_places(problem))

    def guesses(self, problem: Story) -> tuple[str, ...]:
        """All places."""
        del problem
        return ROOMS


def _places(problem: Story) -> list[str]:
    """The place of the key after every event from the first taking on."""
    where: dict[str, str] = {}
    holder, place, places = "", "", list[str]()
    for event in problem.events:
        person, act = event[0], event[1]
        if act == ":":
            where[person] = event[2:]
        else:
            holder = person if act == "+" else ""
            place = where[person]
        places.append(where[holder] if holder else place)
    return places[1:]


FAMILY = Rooms()
