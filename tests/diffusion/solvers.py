"""Every sampler by name, with options bound, that the tests of the solvers share."""

from functools import partial

import numpy as np

from unet_keras import (
    ddim,
    ddim_inversion,
    ddpm,
    deis,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    flow,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    linear,
    lms,
    plms,
    unipc,
    zero_terminal_snr,
)

LINEAR = linear()
DETERMINISTIC = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "dpmpp_2s": partial(dpmpp_2s_ancestral, eta=0.0),
    "dpmpp_sde_0": partial(dpmpp_sde, eta=0.0),
    **{f"lms_{order}": partial(lms, order=order) for order in (1, 2, 3, 4)},
    **{f"deis_{order}": partial(deis, order=order) for order in (1, 2, 3, 4)},
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    **{f"unipc_{order}": partial(unipc, order=order) for order in (1, 2, 3)},
}
STOCHASTIC = {
    "ddpm": ddpm,
    "ddim_half": partial(ddim, eta=0.5),
    "euler_churn": partial(euler, churn=40.0, churn_max=50.0),
    "euler_ancestral": euler_ancestral,
    "heun_churn": partial(heun, churn=40.0, churn_max=50.0),
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_half": partial(dpmpp_2m_sde, eta=0.5),
    "dpmpp_3m_sde": dpmpp_3m_sde,
}
FLOW = {"flow_euler": flow_euler, "flow_heun": flow_heun}
ALL = {**DETERMINISTIC, **STOCHASTIC, "lcm": lcm, "ddim_inversion": ddim_inversion, **FLOW}
SCHEDULES = {"linear": LINEAR, "zero_snr": zero_terminal_snr(LINEAR), "flow": flow()}
X = np.random.default_rng(0).standard_normal((16, 1, 1, 2))
