"""The goals, and whether they were met. A missed goal is said, and is no failure."""


class Goals:
    def __init__(self):
        self.all = []

    def at_least(self, row, what, figure, bound, unit=""):
        return self.check(row, what, figure, bound, unit, "≥", figure >= bound)

    def at_most(self, row, what, figure, bound, unit=""):
        return self.check(row, what, figure, bound, unit, "≤", figure <= bound)

    def check(self, row, what, figure, bound, unit, sign, is_met):
        goal = {"row": row, "what": what, "figure": figure, "met": is_met}
        self.all.append({**goal, "goal": f"{sign} {bound}{unit}"})
        verdict = "ok" if is_met else "MISSED"
        amount = f"{figure:.3g}" if figure < 100 else f"{figure:.0f}"
        return f"  {what:46}{amount + unit:>12}   goal {sign} {bound}{unit}: {verdict}"

    def missed(self):
        return [goal for goal in self.all if not goal["met"]]
