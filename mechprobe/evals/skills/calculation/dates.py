"""Dates after a number of days."""

import calendar
import datetime
import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family

N_DAYS = (31, 92, 183, 365, 731, 1461)
"""Most days to go forward, by level; the number of the level below is exceeded."""
FIRST, LAST = datetime.date(1990, 1, 1), datetime.date(2030, 12, 31)
MONTHS = tuple(calendar.month_name)[1:]


class Later(NamedTuple):
    """A date, and the days to go forward from it."""

    year: int
    month: int
    day: int
    days: int


class Dates(Family):
    """`DATE 2024-03-15+45?`: go from month to month."""

    name, skill, domain = "dates", "calculation", "non_reasoning_qa"
    keyword, alias = "DATE", "DAY"
    answer_form = "word"
    max_answer_chars = 10
    ask = "the date in the form YYYY-MM-DD"
    templates = (
        "Which date is {days} days after {spelled}?",
        "A parcel is sent on {spelled} and arrives {days} days later. On which date does it arrive?",
        "Today is {spelled}. What will the date be in {days} days?",
        "A library book is borrowed on {spelled} for exactly {days} days. When is it due?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Most days to go forward."""
        return {"days": N_DAYS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Later:
        """Draw the date and the days."""
        date = FIRST + datetime.timedelta(rng.randrange((LAST - FIRST).days + 1))
        return Later(date.year, date.month, date.day, rng.choice(_days(level)))

    def level_of(self, problem: Later) -> int:
        """From the number of days."""
        return next((i for i, most in enumerate(N_DAYS, 1) if problem.days <= most), 0)

    def compact(self, problem: Later) -> str:
        """Write the question, e.g. `DATE 2024-03-15+45?`."""
        return f"DATE {_text(*problem[:3])}+{problem.days}?"

    def fields(self, problem: Later) -> dict[str, object]:
        """The date in words."""
        spelled = f"{problem.day} {MONTHS[problem.month - 1]} {problem.year}"
        return {"spelled": spelled, "days": problem.days}

    def answer(self, problem: Later) -> str:
        """Go from month to month."""
        return self.steps(problem)[-1]

    def verify(self, problem: Later) -> str:
        """Count days from the first day of the calendar."""
        ordinal = datetime.date(*problem[:3]).toordinal() + problem.days
        return datetime.date.fromordinal(ordinal).isoformat()

    def steps(self, problem: Later) -> tuple[str, ...]:
        """Write the first day of every month with the days that are left, then the date, e.g. `2024-04-01+28`."""
        year, month, day, days = problem
        steps = []
        while day + days > (length := _length(year, month)):
            days -= length - day + 1
            year, month, day = (year + 1, 1, 1) if month == 12 else (year, month + 1, 1)
            steps.append(f"{_text(year, month, day)}+{days}")
        return (*steps, _text(year, month, day + days))

    def guesses(self, problem: Later) -> int:
        """One date for every number of days of the level."""
        return len(_days(self.level_of(problem)))

    def guess(self, problem: Later, rng: random.Random) -> str:
        """Draw one of them."""
        days = rng.choice(_days(self.level_of(problem)))
        return (datetime.date(*problem[:3]) + datetime.timedelta(days)).isoformat()


def _days(level: int) -> range:
    return range(1 + (N_DAYS[level - 2] if level > 1 else 0), N_DAYS[level - 1] + 1)


def _length(year: int, month: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 28 + leap if month == 2 else 30 if month in (4, 6, 9, 11) else 31


def _text(year: int, month: int, day: int) -> str:
    return f"{year}-{month:02d}-{day:02d}"


FAMILY = Dates()
