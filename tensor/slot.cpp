#include "tensor/slot.h"

namespace proteus {

SlotBase::SlotBase(std::string_view name) : name_(name) { slot_registry().push_back(this); }

void SlotBase::throw_empty(DeviceType type) const {
  throw DeviceError(std::string(name_) + ": no " + (type == DeviceType::cpu ? "cpu" : "cuda") +
                    " kernel; run this on the CPU or install one");
}

std::vector<SlotBase*>& slot_registry() {
  static std::vector<SlotBase*> slots;
  return slots;
}

std::vector<std::string> slot_names() {
  std::vector<std::string> names;
  for (const SlotBase* slot : slot_registry()) names.emplace_back(slot->name());
  return names;
}

}  // namespace proteus
