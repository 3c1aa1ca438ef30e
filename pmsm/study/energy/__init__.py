"""What a spiking network costs: what is counted (operators, touch, plan, firing), what it is priced at
(technology, prices) and how it is told (measurement, text). The verb is in `measure`.
"""
