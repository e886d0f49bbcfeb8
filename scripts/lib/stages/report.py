"""The report and the cards of a model. They describe other artifacts, and take seconds."""

from lib.stages.stage import Memory, Stage, Time


class ReportStage(Stage):
    """A table, a plot and a page."""

    rule = "report"
    column = "report"
    memory = Memory(1500)
    time = Time(10, 1000)
    typical = 40_000


class CardStage(Stage):
    """A model card."""

    rule = "card"
    column = "report"
    memory = Memory(1000)
    time = Time(10, 1000)
    typical = 4_000


STAGES = (ReportStage(), CardStage())
